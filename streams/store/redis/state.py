"""The state of one generation on Redis: rows and watermarks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis

from streams.contracts.frame import partition_of
from streams.interest.engine import UserRow
from streams.settings import RedisSettings
from streams.store.protocol import Reading, StoredRow, Swap, SwapResult, UserRecord, Watermark
from streams.store.redis.connection import SCAN_COUNT, Connection, Script
from streams.store.redis.keys import Keys, fields_of, mark_field, watermark_of

_ROW_FIELDS: Final = ("vector", "recommendations", "state", "model", "updated_at")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a Redis server says of itself, as far as it matters to us.

    Attributes:
        max_memory: Bytes; 0: no limit.
        eviction: `maxmemory-policy`.
        snapshots: Whether it saves by itself now and then; None: it does not tell (CONFIG is forbidden).
    """

    version: str
    role: str
    is_cluster: bool
    max_memory: int
    eviction: str
    append_only: bool
    snapshots: bool | None


class RedisStore:
    """`StateStore` on one Redis server.

    Args:
        settings: Where Redis is.
        generation: Whose rows; without one those of ``settings.generation``.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings, generation: str | None = None) -> None:
        self.generation = generation or settings.generation
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._ask = self._connection.ask
        self._keys = Keys(settings.key_prefix, self.generation)
        self._ttl_ms = settings.ttl_ms
        self._read_script = Script.named("read")
        self._swap_script = Script.named("swap")

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def ping(self) -> str:
        """The server's version, for `driftline doctor`."""
        return str(self._ask(lambda: self._client.info("server"))["redis_version"])

    def facts(self) -> ServerFacts:
        """What the server says of itself, for `driftline doctor`."""
        info: Mapping[str, Any] = self._ask(lambda: self._client.info("all"))
        return ServerFacts(
            str(info["redis_version"]),
            str(info["role"]),
            bool(info.get("cluster_enabled")),
            int(info["maxmemory"]),
            str(info["maxmemory_policy"]),
            bool(info["aof_enabled"]),
            self._saves_snapshots(),
        )

    def _saves_snapshots(self) -> bool | None:
        try:
            found: Mapping[Any, Any] = self._client.config_get("save")
        except redis.RedisError:
            return None  # services for hire forbid CONFIG
        return any(found.values())

    def partitions(self) -> int | None:
        """See `StateStore`."""
        value = self._ask(lambda: self._client.get(self._keys.partitions))
        return None if value is None else int(value)

    def set_partitions(self, partitions: int) -> int:
        """See `StateStore`."""
        self._ask(lambda: self._client.set(self._keys.partitions, partitions, nx=True))
        # The one right of the swap script that is not shown before its first write: a user without it ends here.
        self._ask(lambda: self._client.pexpire(self._keys.nothing, 1))
        return self.partitions() or partitions

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        """See `StateStore`."""

        def read() -> list[dict[bytes, bytes]]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.hgetall(self._keys.watermark(partition))
                return pipe.execute()

        found = self._ask(read)
        return {
            partition: watermark_of(fields) if fields else None
            for partition, fields in zip(partitions, found, strict=True)
        }

    def replace_watermark(self, partition: int, expected: Watermark | None, new: Watermark) -> bool:
        """See `StateStore`."""
        key = self._keys.watermark(partition)

        def replace() -> bool:
            with self._client.pipeline() as pipe:
                pipe.watch(key)  # type: ignore[no-untyped-call]  # redis 8.1
                fields: Any = pipe.hgetall(key)
                if (watermark_of(fields) if fields else None) != expected:
                    return False
                pipe.multi()
                pipe.delete(key)
                pipe.hset(key, mapping=fields_of(new))
                try:
                    pipe.execute()
                except redis.WatchError:
                    return False
                return True

        return self._ask(replace)

    def read_rows(self, users: Mapping[int, Sequence[str]]) -> Mapping[int, Reading]:
        """See `StateStore`."""
        calls: list[tuple[list[str], list[Any]]] = []
        for partition, wanted in users.items():
            prefix = self._keys.user(partition, "")
            calls.append(([self._keys.watermark(partition), *[prefix + user for user in wanted]], []))
        replies = self._connection.run(self._read_script, calls)
        return {partition: _reading(reply) for partition, reply in zip(users, replies, strict=True)}

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        """See `StateStore`."""
        replies = self._connection.run(self._swap_script, [self._swap_call(swap) for swap in swaps])
        return [SwapResult(swapped == 1, int(offset) if offset != b"" else None) for swapped, offset in replies]

    def read_user(self, user_id: str) -> UserRecord | None:
        """See `StateStore`."""
        return self.read_users([user_id])[0]

    def read_users(self, user_ids: Sequence[str]) -> list[UserRecord | None]:
        """As `read_user`, of many in one round trip, in the order asked for."""
        partitions = self.partitions()
        if partitions is None:
            return [None] * len(user_ids)
        return self._records([(partition_of(user_id, partitions), user_id) for user_id in user_ids])

    def scan_users(self) -> Iterator[UserRecord]:
        """See `StateStore`."""
        partitions = self.partitions()
        if partitions is None:
            return
        # A literal { } needs no escape in Redis patterns; what settings allow in a prefix has no special character.
        keys = iter(self._client.scan_iter(match=self._keys.every_user, count=SCAN_COUNT))
        while some := self._ask(lambda: list(islice(keys, SCAN_COUNT))):
            found = self._records([self._keys.partition_and_user(key) for key in some])
            yield from (record for record in found if record is not None)

    def _records(self, users: Sequence[tuple[int, str]]) -> list[UserRecord | None]:
        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition, user_id in users:
                    pipe.hmget(self._keys.user(partition, user_id), _ROW_FIELDS)
                return pipe.execute()

        found = self._ask(read)
        return [_record(user, partition, values) for (partition, user), values in zip(users, found, strict=True)]

    def _swap_call(self, swap: Swap) -> tuple[list[str], list[Any]]:
        new = swap.watermark
        prefix = self._keys.user(swap.partition, "")
        keys = [self._keys.watermark(swap.partition), *(prefix + user for user in (*swap.rows, *swap.ended))]
        expected: int | str = "" if swap.expected is None else swap.expected
        lives_ms: int | str = "" if swap.refreshes else self._ttl_ms
        arguments: list[Any] = [expected, new.offset, new.topic_id, new.partitions, lives_ms]
        arguments += (len(swap.ended), len(new.marks))
        for source, offset in new.marks.items():
            arguments += (mark_field(source), offset)
        for row in swap.rows.values():
            arguments += (row.vector, row.recommendations, row.state, row.model, row.updated_at)
        return keys, arguments


def _reading(reply: Sequence[bytes | None]) -> Reading:
    offset, fields = reply[0], reply[1:]
    rows = [
        StoredRow(state, vector, None if model is None else model.decode())
        for state, vector, model in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    ]
    return Reading(rows, int(offset) if offset else None)


def _record(user_id: str, partition: int, values: Sequence[bytes | None]) -> UserRecord | None:
    vector, recommendations, state, model, updated_at = values
    if vector is None or recommendations is None or state is None or model is None or updated_at is None:
        return None
    return UserRecord(user_id, partition, UserRow(vector, recommendations, state, model.decode(), int(updated_at)))
