"""What a backfill writes: windows first, vectors at the end, and how far it is."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal

import msgspec
import redis

from streams.contracts.frame import MAX_FRAME_USERS
from streams.contracts.generation import Plan, Progress, decode_plan, decode_serving, encode_record
from streams.errors import StateRefused
from streams.interest.engine import UserRow
from streams.settings import RedisSettings
from streams.store.protocol import Watermark
from streams.store.redis.connection import Connection, Script
from streams.store.redis.keys import Keys, fields_of, watermark_of

_ANOTHER_CLAIMS: Final = 0
_MOVED: Final = -1
# What this worker claims is kept, and its progress told, this often: a small part of any lease, and often enough to watch.
_KEEP_EVERY_S: Final = 1.0


class ClaimLost(StateRefused):
    """A partition is not this worker's any more: it was silent for so long that another may have taken over."""


class WatermarkMoved(StateRefused):
    """A live worker, or a person, moved the watermark of a partition that is being filled."""


@dataclass(frozen=True, slots=True)
class FilledWindow:
    """A user's window, and what tells which event moved it last.

    Attributes:
        state: As in the row.
        trigger: The trigger of the recommendation to come, as JSON; None: the row is encoded up to here.
        vector, model: Of the row as it was encoded last; None where it never was.
    """

    state: bytes
    trigger: bytes | None
    vector: bytes | None = None
    model: str | None = None


class RedisFilling:
    """One generation as a backfill worker writes it; every write carries the worker's token.

    Args:
        token: Tells this worker from every other.
        lease_ms: How long a partition stays claimed after this worker was heard of last.
    """

    def __init__(self, settings: RedisSettings, generation: str, token: str, lease_ms: int) -> None:
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._ask = self._connection.ask
        self._keys = Keys(settings.key_prefix, generation)
        self._generation = generation
        self._token = token
        self._lease_ms = lease_ms
        self._claimed: list[int] = []
        self._kept_at = monotonic()
        self._ttl_ms = settings.ttl_ms
        self._claim, self._fill = Script.named("claim"), Script.named("fill")
        self._finish, self._checkpoint = Script.named("finish"), Script.named("checkpoint")
        self._end = Script.named("end")

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def plan(self) -> Plan | None:
        """What is read into the generation; None: nothing is."""
        raw: Any = self._ask(lambda: self._client.get(self._keys.plan))
        try:
            return None if raw is None else decode_plan(raw)
        except msgspec.DecodeError as error:
            raise StateRefused(
                f"key {self._keys.plan} in Redis at {self._connection.where} is not ours: {error}; upgrade, or drop "
                f"the generation with `driftline generations drop {self._generation}`"
            ) from error

    def begin(
        self,
        plan: Plan,
        progress: Mapping[int, Progress],
        expected: Plan | None = None,
        filled: Mapping[int, int] | None = None,
    ) -> bool:
        """Record a plan, and how far each partition is, in the place of ``expected``, unless the generation is served.

        Args:
            expected: The plan that this one follows, whose partitions are done; None: there must be no plan.
            filled: The watermarks that the plan goes on from: each partition's offset, where it has one. They must be so still;
                None: whatever they are.

        Returns:
            Whether it was recorded.
        """
        watermarks = [] if filled is None else [self._keys.watermark(partition) for partition in range(plan.partitions)]
        before = None if expected is None else encode_record(expected)

        def begin() -> bool:
            with self._client.pipeline() as pipe:
                pipe.watch(self._keys.plan, self._keys.serving, *watermarks)  # type: ignore[no-untyped-call]  # redis 8.1
                served: Any = pipe.get(self._keys.serving)
                if served is not None and decode_serving(served).generation == self._generation:
                    return False
                if pipe.get(self._keys.plan) != before:
                    return False
                found: list[Any] = [pipe.hget(key, "offset") for key in watermarks]
                offsets = {partition: int(offset) for partition, offset in enumerate(found) if offset is not None}
                if offsets != (filled or {}):
                    return False
                pipe.multi()
                for partition, of_partition in progress.items():
                    pipe.delete(self._keys.progress(partition))
                    pipe.hset(self._keys.progress(partition), mapping=_progress_fields(of_partition))
                pipe.set(self._keys.plan, encode_record(plan))
                try:
                    pipe.execute()
                except redis.WatchError:
                    return False  # somebody else has just begun
                return True

        return self._ask(begin)

    def end(self, plan: Plan) -> None:
        """Forget the plan once every partition is done, so that another can be made."""

        def end() -> None:
            with self._client.pipeline() as pipe:
                pipe.watch(self._keys.plan)  # type: ignore[no-untyped-call]  # redis 8.1
                found: Any = pipe.get(self._keys.plan)
                if found == encode_record(plan):
                    pipe.multi()
                    pipe.delete(self._keys.plan)
                    # Another worker that saw it done removes it too, and may be the faster.
                    with suppress(redis.WatchError):
                        pipe.execute()

        self._ask(end)

    def progress(self, partitions: Sequence[int]) -> dict[int, Progress]:
        """How far each partition is for good; those of which nothing is recorded are left out."""

        def read() -> list[dict[bytes, bytes]]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.hgetall(self._keys.progress(partition))
                return pipe.execute()

        found = zip(partitions, self._ask(read), strict=True)
        return {partition: _progress(fields) for partition, fields in found if fields}

    def reading(self, partitions: Sequence[int]) -> dict[int, Progress]:
        """As `progress`, with what the workers have told since: it is in their memories, and lost if they die."""
        recorded = self.progress(partitions)

        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.get(self._keys.reading(partition))
                return pipe.execute()

        told = {
            partition: msgspec.json.decode(raw, type=Progress)
            for partition, raw in zip(partitions, self._ask(read), strict=True)
            if raw is not None
        }
        return {
            partition: max(known, told.get(partition, known), key=lambda progress: (progress.is_done, progress.next))
            for partition, known in recorded.items()
        }

    def claim(self, partitions: Sequence[int]) -> bool:
        """Take all of these partitions, or none of them."""
        taken: list[int] = []
        for partition in partitions:
            if not self._take(partition, "take"):
                self.release(taken)
                return False
            taken.append(partition)
        self._claimed = taken
        self._kept_at = monotonic()
        return True

    def keep(self, reading: Mapping[int, Progress]) -> None:
        """Keep what is claimed, and tell how far it is read; about once a second, however often this is called.

        Raises:
            ClaimLost: A partition is not this worker's any more.
        """
        if self._keep_claims():

            def tell() -> None:
                with self._client.pipeline(transaction=False) as pipe:
                    for partition, progress in reading.items():
                        pipe.set(self._keys.reading(partition), msgspec.json.encode(progress), px=self._lease_ms)
                    pipe.execute()

            self._ask(tell)

    def release(self, partitions: Sequence[int]) -> None:
        """Give partitions back."""
        self._claimed = [number for number in self._claimed if number not in partitions]
        self._connection.run(self._claim, [([self._keys.claim(number)], [self._token, 0, ""]) for number in partitions])

    def _take(self, partition: int, how: Literal["take", "keep"]) -> bool:
        call = [self._keys.claim(partition)], [self._token, self._lease_ms, how]
        return bool(self._connection.run(self._claim, [call])[0] == 1)

    def _keep_claims(self) -> bool:
        """Keep what is claimed if it is time to; whether it was."""
        if monotonic() - self._kept_at < _KEEP_EVERY_S:
            return False
        for partition in self._claimed:
            if not self._take(partition, "keep"):
                raise self._lost(partition)
        self._kept_at = monotonic()
        return True

    def is_claimed(self, partitions: Sequence[int]) -> bool:
        """Whether somebody fills one of these partitions."""
        return bool(self._ask(lambda: self._client.exists(*map(self._keys.claim, partitions))))

    def read_windows(self, partition: int, users: Sequence[str]) -> list[FilledWindow | None]:
        """The windows of users of one partition, in the order asked for."""

        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for user in users:
                    pipe.hmget(self._keys.user(partition, user), "state", "trigger", "vector", "model")
                return pipe.execute()

        return [
            None if state is None else FilledWindow(state, trigger, vector, None if model is None else model.decode())
            for state, trigger, vector, model in (self._ask(read) if users else [])
        ]

    def write_windows(self, partition: int, expected: int | None, windows: Mapping[str, FilledWindow]) -> None:
        """Write windows whose vectors are still to come.

        Raises:
            ClaimLost, WatermarkMoved: Somebody else works on this partition; what was written so far does no harm.
        """
        users = list(windows)
        for first in range(0, len(users), MAX_FRAME_USERS):
            some = users[first : first + MAX_FRAME_USERS]
            arguments: list[Any] = [self._ttl_ms]
            for user in some:
                arguments += (user, windows[user].state, windows[user].trigger or b"")
            self._write(self._fill, partition, expected, some, arguments)

    def write_rows(self, partition: int, expected: int | None, rows: Mapping[str, UserRow]) -> None:
        """Write encoded rows; raises as `write_windows`."""
        users = list(rows)
        for first in range(0, len(users), MAX_FRAME_USERS):
            some = users[first : first + MAX_FRAME_USERS]
            arguments: list[Any] = [self._ttl_ms]
            for user in some:
                row = rows[user]
                arguments += (user, row.vector, row.recommendations, row.state, row.model, row.updated_at)
            self._write(self._finish, partition, expected, some, arguments)

    def end_windows(self, partition: int, expected: int | None, users: Sequence[str]) -> None:
        """Remove the rows of users; raises as `write_windows`."""
        for first in range(0, len(users), MAX_FRAME_USERS):
            some = users[first : first + MAX_FRAME_USERS]
            self._write(self._end, partition, expected, some, list(some))

    def unencoded(self, partition: int, count: int) -> list[str]:
        """Up to ``count`` users whose vectors are still to come."""
        found: Any = self._ask(lambda: self._client.srandmember(self._keys.unencoded(partition), count))
        return [user.decode() for user in found]

    def count_unencoded(self, partitions: Sequence[int]) -> int:
        """How many users' vectors are still to come."""

        def count() -> list[int]:
            with self._client.pipeline(transaction=False) as pipe:
                for partition in partitions:
                    pipe.scard(self._keys.unencoded(partition))
                return pipe.execute()

        return sum(self._ask(count))

    def leave_out(self, partition: int, users: Sequence[str]) -> None:
        """Forget that users are still to be encoded: there is no row of theirs any more."""
        self._ask(lambda: self._client.srem(self._keys.unencoded(partition), *users))

    def checkpoint(
        self, partition: int, expected: int | None, progress: Progress, watermark: Watermark | None = None
    ) -> None:
        """Record how far a partition is, and move its watermark if one is given; raises as `write_windows`."""
        named = _pairs(_progress_fields(progress))
        arguments = [_offset(expected), self._token, self._lease_ms, len(named), *named]
        if watermark is not None:
            arguments += _pairs(fields_of(watermark))
        keys = [self._keys.watermark(partition), self._keys.claim(partition), self._keys.progress(partition)]
        self._check(partition, self._connection.run(self._checkpoint, [(keys, arguments)])[0])

    def read_watermark(self, partition: int) -> Watermark | None:
        """How far the partition is applied."""
        fields: Any = self._ask(lambda: self._client.hgetall(self._keys.watermark(partition)))
        return watermark_of(fields) if fields else None

    def _write(
        self, script: Script, partition: int, expected: int | None, users: Sequence[str], arguments: list[Any]
    ) -> None:
        keys = [
            self._keys.watermark(partition), self._keys.claim(partition), self._keys.unencoded(partition),
            *(self._keys.user(partition, user) for user in users),
        ]  # fmt: skip
        # One partition may take long, and others are claimed with it.
        self._keep_claims()
        arguments = [_offset(expected), self._token, *arguments]
        self._check(partition, self._connection.run(script, [(keys, arguments)])[0])

    def _check(self, partition: int, answer: int) -> None:
        if answer == _ANOTHER_CLAIMS:
            raise self._lost(partition)
        if answer == _MOVED:
            raise WatermarkMoved(
                f"the watermark of {self._where(partition)} moved while it was filled: the generation was activated, or "
                "its topic adopted. `driftline generations list` shows which is live"
            )

    def _lost(self, partition: int) -> ClaimLost:
        return ClaimLost(
            f"{self._where(partition)} is not this worker's any more: it was silent for more than "
            f"{self._lease_ms / 1000:g} s, and another may have taken over"
        )

    def _where(self, partition: int) -> str:
        return f"partition {partition} of generation {self._generation}"


def _offset(expected: int | None) -> int | str:
    return "" if expected is None else expected


def _pairs(fields: Mapping[Any, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]


def _progress_fields(progress: Progress) -> dict[Any, Any]:
    return {name: int(value) for name, value in msgspec.structs.asdict(progress).items()}


def _progress(fields: Mapping[bytes, bytes]) -> Progress:
    # Not strict: Redis knows no numbers.
    return msgspec.convert({name.decode(): value.decode() for name, value in fields.items()}, Progress, strict=False)
