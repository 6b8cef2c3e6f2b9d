"""What is recorded of erasures, and removing the erased from every generation."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from streams.contracts.erasure import Erasure, Erasures, user_digest
from streams.contracts.frame import partition_of
from streams.settings import RedisSettings
from streams.store.redis.connection import Connection, Script
from streams.store.redis.generations import RedisGenerations
from streams.store.redis.keys import Keys

_ASKED_AT_ONCE: Final = 1000


class RedisErasures:
    """`ErasureStore` on one Redis server.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._generations = RedisGenerations(settings)
        self._key = f"{settings.key_prefix}:erasures"
        self._erase, self._forget = Script.named("erase"), Script.named("forget")

    def close(self) -> None:
        """Close the connections."""
        self._generations.close()
        self._connection.close()

    def read(self) -> Erasures:
        """See `ErasureStore`."""
        # At once, not by HSCAN: after a restart its cursor points anywhere, and an erasure that was missed would be undone.
        found: Any = self._connection.ask(lambda: self._client.hgetall(self._key))
        return Erasures({digest.decode(): int(erased_ms) for digest, erased_ms in found.items()})

    def read_of(self, users: Sequence[str]) -> Erasures:
        """See `ErasureStore`."""
        found: dict[str, int] = {}
        for first in range(0, len(users), _ASKED_AT_ONCE):
            digests = [user_digest(user) for user in users[first : first + _ASKED_AT_ONCE]]
            times: Any = self._connection.ask(partial(self._client.hmget, self._key, digests))
            found |= {digest: int(time_ms) for digest, time_ms in zip(digests, times, strict=True) if time_ms}
        return Erasures(found)

    def record(self, erasures: Erasures) -> None:
        """See `ErasureStore`."""
        self._connection.run(self._erase, [([self._key], [part for pair in erasures.items() for part in pair])])

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        """See `ErasureStore`."""
        calls: list[tuple[list[str], list[Any]]] = []
        for generation in self._generations.all():
            keys = Keys(self._settings.key_prefix, generation.name)
            found: Any = self._connection.ask(partial(self._client.get, keys.partitions))
            for erasure in erasures:
                partition = partition_of(erasure.user_id, int(found or partitions))
                row = keys.user(partition, erasure.user_id)
                touched = [keys.watermark(partition), keys.unencoded(partition), row]
                calls.append((touched, [erasure.frame_offset, topic_id, erasure.user_id]))
        self._connection.run(self._forget, calls)
