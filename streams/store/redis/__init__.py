"""The state store on Redis. The only room that imports the redis client.

Keys, where ``g1`` is a generation, and ``{3}`` a partition and, on a cluster, the hash tag:

    driftline:generation            which generation is live, and the model that it is served with; none: g1 (the setting)
    driftline:generations           hash: what is known of each generation
    driftline:erasures              hash: when each erased user was, milliseconds since 1970, by a digest of the id
    driftline:g1:partitions         how many partitions users are spread over
    driftline:g1:{3}:watermark      hash: offset, topic_id, partitions, and mark:<topic>:<topic id>:<partition> …
    driftline:g1:{3}:swept          the activation of a model since which no row is of another version
    driftline:g1:{3}:user:<id>      hash: vector, recommendations, state, model, updated_at; expires

and while a backfill fills the generation:

    driftline:g1:plan               what is being read, as JSON
    driftline:g1:{3}:claim          which worker fills the partition; expires
    driftline:g1:{3}:progress       hash: position of the next event to read, events and bad events so far, done
    driftline:g1:{3}:reading        the same as far as the worker has read, which is lost if it dies; expires
    driftline:g1:{3}:unencoded      set: users whose window is ahead of their vector
"""

from streams.store.redis.erasures import RedisErasures
from streams.store.redis.filling import RedisFilling
from streams.store.redis.generations import RedisGenerations, open_served_store
from streams.store.redis.state import RedisStore, ServerFacts
from streams.store.redis.sweep import RedisSweep

__all__ = [
    "RedisErasures",
    "RedisFilling",
    "RedisGenerations",
    "RedisStore",
    "RedisSweep",
    "ServerFacts",
    "open_served_store",
]
