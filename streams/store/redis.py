"""The state store on Redis. The only file that imports the redis client.

Keys of generation ``g1``, where ``{3}`` is the partition and, on a cluster, the hash tag:

    driftline:g1:{3}:watermark      hash: offset, topic_id, partitions, and mark:<topic>:<topic id>:<partition> …
    driftline:g1:{3}:user:<id>      hash: vector, recommendations, state, model, updated_at; expires
    driftline:g1:partitions         how many partitions users are spread over
"""

import hashlib
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Any, Final, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.contracts.frame import Source, partition_of
from streams.errors import AuthenticationFailed, StateRefused, StoreUnavailable
from streams.interest.engine import UserRow
from streams.settings import RedisSettings
from streams.store.protocol import Reading, StoredRow, Swap, SwapResult, UserRecord, Watermark

_ROW_FIELDS: Final = ("vector", "recommendations", "state", "model", "updated_at")
# Keys looked at by one SCAN call: a fraction of a millisecond of Redis's time.
_SCAN_COUNT: Final = 500

_Result = TypeVar("_Result")


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


@dataclass(frozen=True, slots=True)
class _Script:
    """A Lua script, and the digest that Redis knows it by."""

    text: str
    digest: str

    @classmethod
    def named(cls, name: str) -> Self:
        text = resources.files("streams.store").joinpath(name).read_text(encoding="utf-8")
        # SHA-1 is what EVALSHA takes; nothing is kept secret or proven by it.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisStore:
    """`StateStore` on one Redis server.

    Args:
        settings: Where Redis is, and the generation's namespace.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings) -> None:
        settings.check_files()
        self._where = settings.masked_url
        self._prefix = f"{settings.key_prefix}:{settings.generation}:"
        self._ttl_ms = settings.ttl_ms
        self._client = redis.Redis.from_url(
            settings.url.get_secret_value(),
            **settings.client_options(),
            # The caller retries, counts and reports; a second, silent retry below would hide that.
            retry=Retry(NoBackoff(), 0),
        )
        self._read_script = _Script.named("read.lua")
        self._swap_script = _Script.named("swap.lua")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

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
        value = self._ask(lambda: self._client.get(self._prefix + "partitions"))
        return None if value is None else int(value)

    def set_partitions(self, partitions: int) -> int:
        """See `StateStore`."""
        self._ask(lambda: self._client.set(self._prefix + "partitions", partitions, nx=True))
        # The one right of the swap script that is not shown before its first write: a user without it ends here.
        self._ask(lambda: self._client.pexpire(self._prefix + "nothing", 1))
        return self.partitions() or partitions

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        """See `StateStore`."""

        def read() -> list[dict[bytes, bytes]]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.hgetall(self._watermark_key(partition))
                return pipe.execute()

        found = self._ask(read)
        return {
            partition: _watermark(fields) if fields else None
            for partition, fields in zip(partitions, found, strict=True)
        }

    def replace_watermark(self, partition: int, expected: Watermark | None, new: Watermark) -> bool:
        """See `StateStore`."""
        key = self._watermark_key(partition)

        def replace() -> bool:
            with self._client.pipeline() as pipe:
                pipe.watch(key)  # type: ignore[no-untyped-call]  # redis 8.1
                fields: Any = pipe.hgetall(key)
                if (_watermark(fields) if fields else None) != expected:
                    return False
                pipe.multi()
                pipe.delete(key)
                pipe.hset(
                    key,
                    mapping={
                        "offset": new.offset,
                        "topic_id": new.topic_id,
                        "partitions": new.partitions,
                        **{_mark_field(source): offset for source, offset in new.marks.items()},
                    },
                )
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
            prefix = self._user_prefix(partition)
            calls.append(([self._watermark_key(partition), *[prefix + user for user in wanted]], []))
        replies = self._run(self._read_script, calls)
        return {partition: _reading(reply) for partition, reply in zip(users, replies, strict=True)}

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        """See `StateStore`."""
        replies = self._run(self._swap_script, [self._swap_call(swap) for swap in swaps])
        return [SwapResult(swapped == 1, int(offset) if offset != b"" else None) for swapped, offset in replies]

    def read_user(self, user_id: str) -> UserRecord | None:
        """See `StateStore`."""
        partitions = self.partitions()
        if partitions is None:
            return None
        partition = partition_of(user_id, partitions)
        values: Any = self._ask(lambda: self._client.hmget(self._user_prefix(partition) + user_id, _ROW_FIELDS))
        return _record(user_id, partition, values)

    def scan_users(self) -> Iterator[UserRecord]:
        """See `StateStore`."""
        partitions = self.partitions()
        if partitions is None:
            return
        # A literal { } needs no escape in Redis patterns; what settings allow in a prefix has no special character.
        keys = iter(self._client.scan_iter(match=f"{self._prefix}{{*}}:user:*", count=_SCAN_COUNT))
        while some := self._ask(lambda: list(islice(keys, _SCAN_COUNT))):
            yield from self._records(some)

    def _records(self, keys: Sequence[bytes]) -> list[UserRecord]:
        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hmget(key, _ROW_FIELDS)
                return pipe.execute()

        records = []
        for key, values in zip(keys, self._ask(read), strict=True):
            tag, _, user_id = key.decode().removeprefix(self._prefix).partition(":user:")
            record = _record(user_id, int(tag.strip("{}")), values)
            if record is not None:
                records.append(record)
        return records

    def _run(self, script: "_Script", calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run a script once for each pair of keys and arguments, all in one round trip.

        redis-py's own script objects (8.1) ask SCRIPT EXISTS before every pipeline: a second round trip.
        """

        def run() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for keys, arguments in calls:
                    pipe.evalsha(script.digest, len(keys), *keys, *arguments)
                return pipe.execute()

        def run_loaded() -> list[Any]:
            try:
                return run()
            except redis.exceptions.NoScriptError:  # a new server, or one that was restarted
                self._client.script_load(script.text)
                return run()

        return self._ask(run_loaded)

    def _swap_call(self, swap: Swap) -> tuple[list[str], list[Any]]:
        new = swap.watermark
        prefix = self._user_prefix(swap.partition)
        keys = [self._watermark_key(swap.partition), *(prefix + user for user in swap.rows)]
        expected: int | str = "" if swap.expected is None else swap.expected
        arguments: list[Any] = [expected, new.offset, new.topic_id, new.partitions, self._ttl_ms, len(new.marks)]
        for source, offset in new.marks.items():
            arguments += (_mark_field(source), offset)
        for row in swap.rows.values():
            arguments += (row.vector, row.recommendations, row.state, row.model, row.updated_at)
        return keys, arguments

    def _watermark_key(self, partition: int) -> str:
        return f"{self._prefix}{{{partition}}}:watermark"

    def _user_prefix(self, partition: int) -> str:
        return f"{self._prefix}{{{partition}}}:user:"

    def _ask(self, question: Callable[[], _Result]) -> _Result:
        try:
            return question()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise AuthenticationFailed(
                f"Redis at {self._where} refuses these credentials: {error}; check redis.username and redis.password, "
                "and what this user may do"
            ) from error
        except redis.exceptions.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise StateRefused(
                    f"a key under {self._prefix!r} in Redis at {self._where} is not ours: {error}; "
                    "set redis.key_prefix to a name that nothing else uses"
                ) from error
            # What Redis 6 and Redis 7 say where a script may be run and a command in it may not.
            if "user executing the script" in str(error) or "ACL failure in script" in str(error):
                raise AuthenticationFailed(
                    f"Redis at {self._where} lets this user run our scripts, but not all commands in them: {error}; "
                    "check the rights of redis.username"
                ) from error
            # OOM, READONLY after a failover, MISCONF when a snapshot failed: all pass.
            raise StoreUnavailable(f"Redis at {self._where} refused a command: {error}") from error
        except redis.RedisError as error:
            if isinstance(error.__context__, ssl.SSLCertVerificationError):
                raise AuthenticationFailed(
                    f"Redis at {self._where} cannot be trusted: {error.__context__.verify_message}; "
                    "check redis.ssl_ca_file (who signed its certificate) and the host in redis.url"
                ) from error
            raise StoreUnavailable(f"Redis at {self._where} cannot be used: {error}; is it running?") from error


def _reading(reply: Sequence[bytes | None]) -> Reading:
    offset, fields = reply[0], reply[1:]
    rows = [
        StoredRow(state, vector, None if model is None else model.decode())
        for state, vector, model in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    ]
    return Reading(rows, int(offset) if offset else None)


def _watermark(fields: Mapping[bytes, bytes]) -> Watermark:
    marks = {_source(name.decode()): int(offset) for name, offset in fields.items() if name.startswith(b"mark:")}
    return Watermark(int(fields[b"offset"]), fields[b"topic_id"].decode(), int(fields[b"partitions"]), marks)


def _mark_field(source: Source) -> str:
    return f"mark:{source.topic}:{source.topic_id}:{source.partition}"


def _source(mark_field: str) -> Source:
    # Neither a topic's name nor its id can hold a colon.
    _, topic, topic_id, partition = mark_field.split(":")
    return Source(topic, topic_id, int(partition))


def _record(user_id: str, partition: int, values: Sequence[bytes | None]) -> UserRecord | None:
    vector, recommendations, state, model, updated_at = values
    if vector is None or recommendations is None or state is None or model is None or updated_at is None:
        return None
    return UserRecord(user_id, partition, UserRow(vector, recommendations, state, model.decode(), int(updated_at)))
