"""The state store on Redis. The only room that imports the redis client.

Keys of generation ``g1``, where ``{3}`` is the partition and, on a cluster, the hash tag:

    driftline:g1:{3}:watermark      hash: offset, topic_id, partitions, and mark:<topic>:<topic id>:<partition> …
    driftline:g1:{3}:user:<id>      hash: vector, recommendations, state, model, updated_at; expires
    driftline:g1:partitions         how many partitions users are spread over
"""

from streams.store.redis.state import RedisStore, ServerFacts

__all__ = ["RedisStore", "ServerFacts"]
