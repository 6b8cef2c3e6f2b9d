"""Which rows another model's version wrote, and which partitions have none of these left."""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

from streams.settings import RedisSettings
from streams.store.redis.connection import SCAN_COUNT, Connection
from streams.store.redis.keys import Keys


class RedisSweep:
    """Looks through one generation for rows to encode again.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings, generation: str) -> None:
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._ask = self._connection.ask
        self._keys = Keys(settings.key_prefix, generation)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def unswept(self, partitions: Sequence[int], activation: str) -> list[int]:
        """The partitions that were not looked through to their end since this activation.

        Args:
            activation: Tells it from every other, also of the same version.
        """
        if not partitions:
            return []
        found: Any = self._ask(lambda: self._client.mget([self._keys.swept(number) for number in partitions]))
        return [number for number, swept in zip(partitions, found, strict=True) if swept != activation.encode()]

    def record(self, partition: int, activation: str) -> None:
        """Record that a partition has no row of another version left."""
        self._ask(lambda: self._client.set(self._keys.swept(partition), activation))

    def outdated(self, partitions: Collection[int], model: str) -> Iterator[list[tuple[int, str]]]:
        """Partitions and ids of users whose row is another version's, a few hundred keys a step; many steps find none."""
        keys = iter(self._client.scan_iter(match=self._keys.every_user, count=SCAN_COUNT))
        while some := self._ask(lambda: list(islice(keys, SCAN_COUNT))):
            users = [found for key in some if (found := self._keys.partition_and_user(key))[0] in partitions]
            yield self._of_others(users, model)

    def _of_others(self, users: Sequence[tuple[int, str]], model: str) -> list[tuple[int, str]]:
        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition, user_id in users:
                    pipe.hget(self._keys.user(partition, user_id), "model")
                return pipe.execute()

        versions = self._ask(read) if users else []
        return [user for user, version in zip(users, versions, strict=True) if version not in (None, model.encode())]
