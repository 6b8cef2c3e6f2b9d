"""Generations side by side: what there is, how two compare, which one is served, and removing one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import islice
from time import time
from typing import Final, Protocol

import numpy as np
from msgspec import Struct

from streams.contracts.frame import Frame, InvalidFrame, decode_frame
from streams.contracts.generation import Generation, Plan, Serving
from streams.errors import DriftlineError, UsageError
from streams.log.admin import LogAdmin
from streams.log.readers import ExtentsReader
from streams.log.topics import Extent, Partition, Topic
from streams.services.backfill.planning import words_of
from streams.services.bundle import find_bundle
from streams.services.parts import open_engine
from streams.services.topics import partitions_of
from streams.services.users import recommendation_of, state_of
from streams.settings import RedisSettings, Settings
from streams.store.protocol import UserRecord, Watermark
from streams.store.redis import RedisFilling, RedisGenerations, RedisStore

_BATCH: Final = 200
_FRAMES_A_READ: Final = 1000
_READ_WAIT_S: Final = 0.1


class NotFit(DriftlineError):
    """A generation is not fit to be served; the message says why, and what to do."""

    exit_code = 3


class Rows(Protocol):
    """What a comparison reads of a generation; `streams.store.redis.RedisStore` is one."""

    generation: str

    def scan_users(self) -> Iterator[UserRecord]:
        """Every user, in no order; one may come twice."""

    def read_users(self, user_ids: Sequence[str]) -> list[UserRecord | None]:
        """The rows of users, in the order asked for."""


class GenerationStatus(Struct, frozen=True):
    """One generation as `driftline generations list` prints it.

    Attributes:
        state: ``live`` (it is served), ``previous`` (it was before), ``filling`` (a backfill is not done), ``ready``.
        lag: Frames of `interactions` that are not applied in it; None where a partition was never begun.
        unencoded: Users whose vectors are still to come.
        claimed: A worker of a backfill is at it.
    """

    name: str
    state: str
    model_name: str
    model: str
    origin: str
    created_at: int
    lag: int | None
    unencoded: int
    claimed: bool
    bundle: str


class Distances(Struct, frozen=True):
    """Cosine distances of vectors, 0 to 2."""

    p50: float
    p99: float
    max: float


class Sample(Struct, frozen=True):
    """One user side by side: the items listed, best first."""

    user_id: str
    same_window: bool
    distance: float | None
    here: list[str]
    there: list[str]


class Comparison(Struct, frozen=True):
    """Two generations side by side, over the same users.

    Attributes:
        here, there: Their names.
        users_here, users_there: Looked at in each.
        moving: Of those, users with events that are still to come in one of the two: they are left out of all that follows.
            None: it lacks so many frames that nobody was left out.
        missing_there, missing_here: Users without a row in the other.
        compared: Users with a row in both.
        differing_windows: Of those.
        distances: None where the vectors are of different lengths, or no user is in both.
        list_overlap: Mean share of items that two lists have in common; None where no user is in both.
    """

    here: str
    there: str
    users_here: int
    users_there: int
    moving: int | None
    missing_there: int
    missing_here: int
    compared: int
    differing_windows: int
    distances: Distances | None
    list_overlap: float | None
    samples: list[Sample]


class Limits(Struct, frozen=True):
    """What a generation must keep to be served.

    Attributes:
        max_lag: Frames of `interactions` that it may lack: live workers read them again before they go on.
        max_missing: Share of the served generation's users that it may lack.
        max_differing_windows: Share of the users in both whose windows may differ.
        min_overlap: Share of items that two lists of a user must have in common, on average.
    """

    max_lag: int = 10_000
    max_missing: float = 0.01
    max_differing_windows: float = 0.01
    min_overlap: float = 0.0


class Filled(Struct, frozen=True):
    """How far a generation is filled.

    Attributes:
        watermarks: By partition; None where there is none.
        plan: What is being read into it.
    """

    watermarks: Mapping[int, Watermark | None]
    plan: Plan | None
    unencoded: int
    claimed: bool


def status_of(
    record: Generation, serving: Serving, filled: Filled, extents: Mapping[Partition, Extent]
) -> GenerationStatus:
    """What `driftline generations list` says of one."""
    if record.name == serving.generation:
        state = "live"
    elif filled.plan is not None or filled.unencoded:
        state = "filling"
    else:
        state = "previous" if record.name == serving.previous_generation else "ready"
    return GenerationStatus(
        record.name,
        state,
        record.model_name,
        record.model,
        record.origin,
        record.created_ms,
        lag_of(filled.watermarks, extents),
        filled.unencoded,
        filled.claimed,
        record.bundle,
    )


def lag_of(watermarks: Mapping[int, Watermark | None], extents: Mapping[Partition, Extent]) -> int | None:
    """Frames that are not applied; None where a partition was never begun."""
    lag = 0
    for partition, extent in extents.items():
        watermark = watermarks.get(partition.number)
        if watermark is None:
            return None
        lag += max(0, extent.end - max(extent.start, watermark.offset + 1))
    return lag


def compare(
    here: Rows, there: Rows, users: int, samples: int, moving: Callable[[], Collection[str] | None] = frozenset
) -> Comparison:
    """Look at up to ``users`` users of each side, and how they fare on the other.

    Redis hands out keys in the order of their hashes, so the first ones are as good as any sample.

    Args:
        moving: Is asked once everything is read: of whom one of the two may lack events.
    """
    pairs: list[Sample] = []
    missing_there: set[str] = set()
    seen: set[str] = set()
    for batch in _batches(_each_once(here.scan_users(), seen, users)):
        for record, other in _with_others(batch, there):
            if other is None:
                missing_there.add(record.user_id)
            else:
                pairs.append(_side_by_side(record, other))
    missing_here: set[str] = set()
    others_seen: set[str] = set()
    for batch in _batches(_each_once(there.scan_users(), others_seen, users)):
        missing_here.update(record.user_id for record, other in _with_others(batch, here) if other is None)
    found = moving()
    left_out = frozenset(found or ()) & (seen | others_seen)
    pairs = [each for each in pairs if each.user_id not in left_out]
    distances = [each.distance for each in pairs if each.distance is not None]
    overlaps = [len(set(each.here) & set(each.there)) / max(1, len(each.here), len(each.there)) for each in pairs]
    return Comparison(
        here.generation,
        there.generation,
        len(seen),
        len(others_seen),
        None if found is None else len(left_out),
        len(missing_there - left_out),
        len(missing_here - left_out),
        len(pairs),
        sum(not each.same_window for each in pairs),
        _summary(distances) if distances and len(distances) == len(pairs) else None,
        float(np.mean(overlaps)) if overlaps else None,
        pairs[:samples],
    )


def check_whole(name: str, filled: Filled, topic: Topic, extents: Mapping[Partition, Extent]) -> int:
    """How many frames a generation lacks; an error where live workers could not go on from it at all.

    Raises:
        NotFit: A backfill is not done, or its watermarks do not belong to the log.
    """
    again = f"`driftline backfill --generation {name} --execute` goes on with it"
    if filled.claimed:
        raise NotFit(f"a backfill is writing generation {name} right now; wait for it")
    if filled.plan is not None:
        command = f"driftline backfill --generation {name}{words_of(filled.plan.request)} --execute"
        raise NotFit(f"the backfill of generation {name} is not done; `{command}` goes on with it")
    if filled.unencoded:
        raise NotFit(f"{filled.unencoded:,} users of generation {name} have no vector yet; {again}")
    for partition, extent in extents.items():
        watermark = filled.watermarks.get(partition.number)
        where = f"{topic.name} partition {partition.number}"
        if watermark is None:
            raise NotFit(
                f"generation {name} has no watermark of {where}, and of others it has: part of it is lost. Fill a new one"
                if any(filled.watermarks.values())
                else f"generation {name} has no watermark of {where}: it was never filled; {again}"
            )
        if watermark.topic_id != topic.topic_id or watermark.offset >= extent.end:
            raise NotFit(
                f"generation {name} was filled from another {topic.name}: its watermark of partition {partition.number} is "
                f"{watermark.offset} of id {watermark.topic_id or 'none'}, the log ends at {extent.end} and is "
                f"{topic.topic_id or 'none'}. Fill a new one"
            )
        if watermark.offset + 1 < extent.start:
            raise NotFit(
                f"generation {name} has {where} up to offset {watermark.offset}, and the log starts at {extent.start}: "
                "retention deleted what is between. Fill a new one"
            )
    return lag_of(filled.watermarks, extents) or 0


def failings(lag: int, comparison: Comparison, limits: Limits) -> list[str]:
    """What a generation does not keep of the limits, each with its figures."""
    found = []
    if lag > limits.max_lag:
        found.append(f"it lacks {lag:,} frames, more than --max-lag {limits.max_lag:,}")
    missing = comparison.missing_there / max(1, comparison.users_here)
    if missing > limits.max_missing:
        found.append(
            f"{comparison.missing_there:,} of {comparison.users_here:,} users have no row in it "
            f"({missing:.1%}, more than --max-missing {limits.max_missing:.1%})"
        )
    differing = comparison.differing_windows / max(1, comparison.compared)
    if differing > limits.max_differing_windows:
        found.append(
            f"{comparison.differing_windows:,} of {comparison.compared:,} users have another window in it "
            f"({differing:.1%}, more than --max-differing {limits.max_differing_windows:.1%})"
        )
    if comparison.list_overlap is not None and comparison.list_overlap < limits.min_overlap:
        found.append(
            f"lists have {comparison.list_overlap:.1%} of their items in common, less than --min-overlap "
            f"{limits.min_overlap:.1%}"
        )
    return found


class Activation(Struct, frozen=True):
    """What `driftline generations activate` did.

    Attributes:
        lag: Frames that live workers read again before they go on.
        comparison: With what was served before; None where that has no rows.
        ignored: Limits that were not kept, and were not to matter.
    """

    serving: Serving
    lag: int
    comparison: Comparison | None
    ignored: list[str]


def list_generations(settings: Settings) -> list[GenerationStatus]:
    """Every generation that is recorded, oldest first."""
    with closing(RedisGenerations(settings.redis)) as generations:
        serving, records = generations.serving(), generations.all()
    topic, extents = _interactions(settings)
    return [
        status_of(record, serving, read_filled(settings.redis, record.name, topic.partitions), extents)
        for record in records
    ]


def compare_generations(settings: Settings, here: str | None, there: str, users: int, samples: int) -> Comparison:
    """Compare two generations by name; without the first, with the one that is served."""
    with closing(RedisGenerations(settings.redis)) as generations:
        served = generations.serving().generation
        records = generations.all()
    here = here or served
    if here == served and all(record.name != here for record in records):
        raise UsageError(
            f"generation {here} is served, but no worker has begun to write it, so there is nothing to compare with. "
            "Start evolve, or name another generation with --to"
        )
    for name in (here, there):
        find_record(records, name)
    return _compare(settings, here, there, users, samples, Limits().max_lag)


def activate(settings: Settings, name: str, limits: Limits, users: int, *, ignore_limits: bool) -> Activation:
    """Serve a generation from now on: readers read it at once, live workers move to it within moments.

    Raises:
        NotFit: It lacks too much, or compares too badly; nothing has changed.
        UsageError: There is no such generation, or it is served already.
        BundleError, EncoderFailed: Its model cannot be loaded here; nothing has changed.
    """
    with closing(RedisGenerations(settings.redis)) as generations:
        serving = generations.serving()
        if serving.generation == name:
            raise UsageError(f"generation {name} is served already")
        records = generations.all()
        record = find_record(records, name)
        served = next((each for each in records if each.name == serving.generation), None)
        topic, extents = _interactions(settings)
        lag = check_whole(name, read_filled(settings.redis, name, topic.partitions), topic, extents)
        new = Serving(
            name, record.model, serving.generation, served.model if served else serving.model, round(time() * 1000)
        )
        # What workers will do: a model that cannot be loaded never gets in.
        open_engine(settings, find_bundle(settings, new, record), name)
        comparison = None if served is None else _compare(settings, served.name, name, users, 0, limits.max_lag)
        ignored = [] if comparison is None else failings(lag, comparison, limits)
        if ignored and not ignore_limits:
            raise NotFit(
                f"generation {name} is not activated: {'; '.join(ignored)}. "
                f"`driftline backfill --generation {name} --execute` reads what it lacks, `driftline generations compare "
                f"{name}` shows more; --ignore-limits activates it all the same"
            )
        if not generations.serve(serving, new):
            raise UsageError(
                f"something else was activated, or a backfill of {name} begun, at this moment; look at "
                "`driftline generations list`"
            )
    return Activation(new, lag, comparison, ignored)


def drop(settings: Settings, name: str) -> Iterator[int]:
    """Remove a generation that is not served; yields how many keys each step removed.

    Raises:
        UsageError: There is none, it is served, or a backfill is writing it.
    """
    with closing(RedisGenerations(settings.redis)) as generations:
        find_record(generations.all(), name)
        if generations.serving().generation == name:
            raise UsageError(f"generation {name} is served; activate another before it is dropped")
        with closing(RedisStore(settings.redis, name)) as store:
            partitions = store.partitions()
        if partitions is not None and read_filled(settings.redis, name, partitions).claimed:
            raise UsageError(f"a backfill is writing generation {name}: stop it first")
        yield from generations.drop(name)


def read_filled(settings: RedisSettings, name: str, partitions: int) -> Filled:
    """How far a generation is filled, as of now."""
    numbers = range(partitions)
    with closing(RedisStore(settings, name)) as store, closing(RedisFilling(settings, name, "", 0)) as filling:
        return Filled(
            store.read_watermarks(numbers),
            filling.plan(),
            filling.count_unencoded(numbers),
            filling.is_claimed(numbers),
        )


def _compare(settings: Settings, here: str, there: str, users: int, samples: int, most_frames: int) -> Comparison:
    with closing(RedisStore(settings.redis, here)) as one, closing(RedisStore(settings.redis, there)) as other:
        topic, _ = _interactions(settings)
        # Before any row: what is applied later is in a frame after these.
        watermarks = [store.read_watermarks(range(topic.partitions)) for store in (one, other)]
        # One of a topic that was made anew says nothing of this one.
        applied = [
            {number: each if each and each.topic_id == topic.topic_id else None for number, each in found.items()}
            for found in watermarks
        ]
        return compare(one, other, users, samples, lambda: _users_since(settings, applied, most_frames))


def _users_since(
    settings: Settings, applied: Sequence[Mapping[int, Watermark | None]], most_frames: int
) -> set[str] | None:
    """Users with events that are still to come somewhere; None where more than ``most_frames`` frames had to be looked into.

    Frames above the watermark bring nothing new to a generation that was filled with their events from raw topics: its marks
    tell.
    """
    lacking: dict[Partition, Extent] = {}
    for partition, extent in _interactions(settings)[1].items():
        watermarks = [found[partition.number] for found in applied]
        first = min(0 if watermark is None else watermark.offset + 1 for watermark in watermarks)
        start = max(extent.start, first)
        lacking[partition] = Extent(start, max(start, extent.end))
    if sum(extent.end - extent.start for extent in lacking.values()) > most_frames:
        return None
    users: set[str] = set()
    with closing(ExtentsReader(settings.kafka, lacking)) as reader:
        while reader.unfinished:
            for message in reader.read(_FRAMES_A_READ, _READ_WAIT_S):
                # One that is no frame is nobody's: workers bury it.
                with suppress(InvalidFrame):
                    frame = decode_frame(message.value or b"")
                    for found in applied:
                        users |= users_to_come(frame, message.offset, found[message.partition])
    return users


def users_to_come(frame: Frame, offset: int, applied: Watermark | None) -> set[str]:
    """Users to whom a frame at this offset of its partition brings events beyond what is applied there."""
    if applied is not None and offset <= applied.offset:
        return set()
    marks = {} if applied is None else applied.marks
    known = [marks.get(source, -1) for source in frame.sources]
    return {
        user for user, source, raw in zip(frame.user, frame.source, frame.offset, strict=True) if raw > known[source]
    }


def _interactions(settings: Settings) -> tuple[Topic, dict[Partition, Extent]]:
    name = settings.topics.interactions
    with LogAdmin(settings.kafka, settings.evolve.group) as admin:
        topic = admin.topics([name])[name]
        return topic, admin.extents(partitions_of(topic))


def find_record(records: Iterable[Generation], name: str) -> Generation:
    """The record of a generation.

    Raises:
        UsageError: There is none; the message names those that there are.
    """
    known = {record.name: record for record in records}
    if name not in known:
        raise UsageError(
            f"there is no generation {name}; there are: {', '.join(known) or 'none'}. "
            f"`driftline backfill --generation {name} --execute` fills one"
        )
    return known[name]


def _each_once(records: Iterator[UserRecord], seen: set[str], count: int) -> Iterator[UserRecord]:
    for record in records:
        if len(seen) == count:
            return
        if record.user_id not in seen:
            seen.add(record.user_id)
            yield record


def _batches(records: Iterator[UserRecord]) -> Iterator[list[UserRecord]]:
    while batch := list(islice(records, _BATCH)):
        yield batch


def _with_others(records: Sequence[UserRecord], there: Rows) -> Iterator[tuple[UserRecord, UserRecord | None]]:
    return zip(records, there.read_users([record.user_id for record in records]), strict=True)


def _side_by_side(one: UserRecord, other: UserRecord) -> Sample:
    same_window = state_of(one) == state_of(other)
    return Sample(one.user_id, same_window, _distance(one, other), _items(one), _items(other))


def _distance(one: UserRecord, other: UserRecord) -> float | None:
    first, second = (np.frombuffer(each.row.vector, "<f4").astype(np.float64) for each in (one, other))
    if len(first) != len(second):
        return None
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return 1.0 - float(first @ second) / norms if norms else float(first.any() != second.any())


def _summary(distances: Sequence[float]) -> Distances:
    p50, p99, most = np.percentile(np.maximum(distances, 0.0), (50, 99, 100)).tolist()
    return Distances(p50, p99, most)


def _items(record: UserRecord) -> list[str]:
    return [item.item_id for item in recommendation_of(record).items]
