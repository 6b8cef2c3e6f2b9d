"""From what a person asks for to a plan: what is read into which generation, and whether that may be."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace

from models.bundle import Bundle, read_bundle
from streams.contracts.frame import InvalidFrame, decode_frame
from streams.contracts.generation import (
    Generation,
    Mark,
    Plan,
    Progress,
    Request,
    Seal,
    Serving,
    SourceFile,
    SourceRange,
)
from streams.errors import DataError, LogGap, StateRefused, TopicMissing, UsageError
from streams.log.admin import LogAdmin
from streams.log.readers import ExtentsReader
from streams.log.topics import Extent, Partition, Topic
from streams.services.backfill.events import Count
from streams.services.backfill.files import FileSource, find_files
from streams.services.backfill.ranges import Range, parse_range, resolve
from streams.services.backfill.raw import RawSource
from streams.services.bundle import bundle_path, find_bundle
from streams.services.topics import partitions_of, roles
from streams.settings import Settings
from streams.store.protocol import Watermark
from streams.store.redis import RedisFilling, RedisGenerations, RedisStore

DEFAULT_TYPE: Final = "click"
"""Of an event in a file that names none."""
# Of one worker on a 2.8 GHz core, all that it does: reading, advancing windows and encoding them (`make bench`).
EVENTS_PER_S: Final = 100_000
# For the estimate: of so many partitions so many frames each, from the midst of what is read.
_SAMPLE_PARTITIONS: Final = 16
_SAMPLE_FRAMES: Final = 10
_SAMPLE_WAIT_S: Final = 1.0
# A round that is over so soon leaves so little behind that live workers catch up with it in no time.
_SHORT_ROUND_MS: Final = 2_000

# A worker that died is replaced after this time. One that reads a slow log, or encodes one batch, is heard of sooner.
LEASE_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Target:
    """The generation to be filled, and what is asked about it.

    Attributes:
        settings: With the generation to be filled.
        filling, store: Of that generation.
        served: Of the generation that is served.
        bundle: Whose encoder makes the vectors.
    """

    settings: Settings
    admin: LogAdmin
    generations: RedisGenerations
    filling: RedisFilling
    store: RedisStore
    served: RedisStore
    bundle: Bundle

    @property
    def name(self) -> str:
        """Of the generation to be filled."""
        return self.settings.redis.generation


@contextmanager
def open_target(settings: Settings, configured: str, *, is_named: bool) -> Iterator[Target]:
    """Connect to all that is asked about the generation of the settings.

    Args:
        configured: The generation that is served while none was activated.
        is_named: The bundle was named for this very command; else a generation that is there goes on with its own model.

    Raises:
        UsageError: It is the one that is served: readers would see half-filled rows.
        BundleError: The bundle is missing, broken or tampered with.
        StoreUnavailable, AuthenticationFailed: Redis says so.
    """
    name = settings.redis.generation
    with ExitStack() as stack:
        live = settings.redis.model_copy(update={"generation": configured})
        generations = stack.enter_context(closing(RedisGenerations(live)))
        served = generations.serving().generation
        if name == served:
            raise UsageError(
                f"generation {name} is the one that is served: live workers write it. Fill one with another name, and "
                "`driftline generations activate` it when it is filled"
            )
        record = generations.find(name)
        if record is None or is_named:
            bundle = read_bundle(bundle_path(settings.model.bundle))
        else:
            bundle = find_bundle(settings, Serving(name, record.model), record)
        yield Target(
            settings,
            stack.enter_context(LogAdmin(settings.kafka)),
            generations,
            stack.enter_context(closing(RedisFilling(settings.redis, name, uuid4().hex, LEASE_MS))),
            stack.enter_context(closing(RedisStore(settings.redis, name))),
            stack.enter_context(closing(RedisStore(settings.redis, served))),
            bundle,
        )


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and how far it is.

    Attributes:
        progress: By partition.
        filled: The watermarks that it goes on from: the offset of each partition that has one.
        is_begun: It was made before, and is taken up again.
    """

    plan: Plan
    progress: Mapping[int, Progress]
    filled: Mapping[int, int] | None = None
    is_begun: bool = False


class Estimate(Struct, frozen=True):
    """What is still to be read.

    Attributes:
        records: Frames of `interactions`, messages of raw topics, or lines and rows.
        events: In them, as a sample suggests.
        seconds: That it takes all workers, about.
    """

    records: int
    events: int
    seconds: float


def check_request(settings: Settings, request: Request) -> None:
    """Refuse what cannot be meant.

    Raises:
        UsageError: Options exclude each other, or lists would go to a topic of the settings.
    """
    ranged = _range_options(request)
    if request.source == "files" and ranged:
        raise UsageError(
            f"{' '.join(ranged[0])} is for topics; files are read whole. Leave it out, or name fewer files"
        )
    if request.source == "raw" and request.from_offsets is not None and len(request.names) > 1:
        raise UsageError(
            f"--from-offsets {request.from_offsets} names offsets of one topic, and there are {len(request.names)}: "
            f"{', '.join(request.names)}. Give --from-datetime instead, which fits all of them"
        )
    if bool(request.recommendations) != bool(request.every):
        raise UsageError(
            "--recommendations TOPIC and --every N go together: where lists go, and after how many events of a user"
        )
    role = roles(settings).get(request.recommendations)
    if role is not None:
        raise UsageError(
            f"--recommendations {request.recommendations}: that is the topic of the settings for {_ROLE_NAMES[role]}, "
            "and replayed lists are none of those. Name a topic of their own"
        )


_ROLE_NAMES: Final = {
    "source": "raw events",
    "interactions": "the log of frames",
    "recommendations": "live recommendations",
    "dead letters": "dead letters",
}


def make_plan(target: Target, request: Request, workers: int, now_ms: int) -> Planned:
    """The plan that a request means, or the one that it goes on with; nothing is written.

    Args:
        request: As `check_request` let it through.
        workers: That read side by side.
        now_ms: Milliseconds since 1970.

    Raises:
        UsageError: The generation is another model's, is being filled with something else, or is filled already.
        StateRefused, LogGap: What is in the store does not belong to this log.
        DataError: A file changed since the plan was made.
        LogUnavailable, TopicMissing, AuthenticationFailed, StoreUnavailable: Kafka or Redis says so.
    """
    name, admin = target.name, target.admin
    _check_model(name, target.generations.find(name), target.bundle)
    interactions = target.settings.topics.interactions
    topic = admin.topics([interactions])[interactions]
    _check_partitions(name, topic, target.store.partitions())
    if request.recommendations and not admin.existing_topics([request.recommendations]):
        raise TopicMissing(
            f"there is no topic {request.recommendations} for the replayed lists. Make it, with as many partitions as "
            "its consumers need"
        )
    plan = target.filling.plan()
    if plan is not None:
        _check_same(name, plan, request, topic, target.bundle)
        return Planned(plan, progress_of(name, plan, target.filling.progress(range(plan.partitions))), is_begun=True)
    plan = Plan(
        request,
        topic.partitions,
        topic.partitions,
        topic.topic_id,
        target.bundle.config.version,
        now_ms,
        target.served.generation,
    )
    watermarks = target.store.read_watermarks(range(topic.partitions))
    found = {partition: watermark for partition, watermark in watermarks.items() if watermark is not None}
    wanted = parse_range(request.from_datetime, request.to_datetime, request.by_duration, request.from_offsets, now_ms)
    if found:
        _check_goes_on(name, request, topic, found)
        plan = replace(plan, ranges=tuple(_ranges_after(name, admin, topic, found)), follows=True)
    elif request.source == "interactions":
        plan = replace(plan, ranges=tuple(_ranges(admin, topic, wanted)), follows=wanted.to_datetime is None)
    elif request.source == "raw":
        plan = _of_raw_topics(replace(plan, shares=min(workers, plan.partitions)), target, topic, wanted)
    else:
        plan = _of_files(replace(plan, shares=min(workers, plan.partitions)), target, topic)
    starts = [each.start for each in plan.ranges] if request.source == "interactions" else [0] * plan.partitions
    progress = {partition: Progress(start) for partition, start in enumerate(starts)}
    return Planned(plan, progress, {partition: watermark.offset for partition, watermark in found.items()})


def record_plan(target: Target, planned: Planned) -> None:
    """Record the generation and its plan, so that workers can begin.

    Raises:
        UsageError: Another command has just begun to fill it with something else, or activated it.
        StateRefused: It was filled with another number of partitions.
        StoreUnavailable, AuthenticationFailed: Redis says so.
    """
    plan, config = planned.plan, target.bundle.config
    generation = Generation(
        target.name,
        config.name,
        config.version,
        target.bundle.space,
        str(target.bundle.path.resolve()),
        plan.created_ms,
        "backfill",
    )
    target.generations.register(generation)
    topic = Topic(target.settings.topics.interactions, plan.topic_id, plan.partitions)
    _check_partitions(target.name, topic, target.store.set_partitions(plan.partitions))
    if not target.filling.begin(plan, planned.progress, filled=planned.filled):
        found = target.filling.plan()
        if found is None:
            raise UsageError(
                f"generation {target.name} was activated, or filled by another command, at this moment; look at "
                "`driftline generations list`"
            )
        _check_same(target.name, found, plan.request, topic, target.bundle)


def is_last_round(plan: Plan, now_ms: int) -> bool:
    """Whether a plan that is done is not worth going on with: the log has grown by little since it was made.

    Under load that may never be so: then where rounds do not get much shorter any more.
    """
    took_ms = now_ms - plan.created_ms
    return (
        not plan.follows or took_ms < _SHORT_ROUND_MS or (plan.before_ms is not None and took_ms > plan.before_ms / 2)
    )


def next_round(plan: Plan, extents: Mapping[Partition, Extent], now_ms: int) -> Plan:
    """The plan that follows one that is done: from where it ended to where the log ends."""
    ranges = tuple(
        replace(each, start=each.end, end=max(each.end, extents[Partition(each.topic, each.partition)].end))
        for each in plan.ranges
    )
    return replace(plan, ranges=ranges, created_ms=now_ms, before_ms=now_ms - plan.created_ms)


def progress_of(name: str, plan: Plan, recorded: Mapping[int, Progress]) -> Mapping[int, Progress]:
    """What is recorded of every partition of a plan.

    Raises:
        StateRefused: Of one nothing is.
    """
    if len(recorded) < plan.partitions:
        raise StateRefused(
            f"of {plan.partitions - len(recorded)} partitions of generation {name} it is not recorded how far they are "
            f"filled: Redis lost it, or removed it. Drop the generation (`driftline generations drop {name}`) and begin "
            "anew; Redis must not evict"
        )
    return recorded


def source_of(plan: Plan, settings: Settings) -> FileSource | RawSource:
    """What a plan reads that is no `interactions`.

    Raises:
        DataError: A file changed since the plan was made.
        UsageError: A file is gone, or a raw topic is none of the settings'.
    """
    if plan.request.source == "files":
        check_files(plan)
        return FileSource([file.path for file in plan.files], plan.request.default_type, plan.created_ms)
    topics: dict[str, Topic] = {}
    for each in plan.ranges:
        count = topics[each.topic].partitions if each.topic in topics else 0
        topics[each.topic] = Topic(each.topic, each.topic_id, max(count, each.partition + 1))
    return RawSource(settings, topics, extents_of(plan))


def extents_of(plan: Plan) -> dict[Partition, Extent]:
    """What a plan reads of topics."""
    return {Partition(each.topic, each.partition): Extent(each.start, each.end) for each in plan.ranges}


def check_files(plan: Plan) -> None:
    """Refuse files that are not those that were planned for: how far they are read would mean something else.

    Raises:
        DataError: A file is gone, or has another size.
    """
    for file in plan.files:
        try:
            size = Path(file.path).stat().st_size
        except OSError as error:
            raise DataError(
                f"cannot read {file.path}: {error.strerror or error}. The backfill was begun with it; put it back"
            ) from error
        if size != file.bytes:
            raise DataError(
                f"{file.path} has {size:,} bytes, and {file.bytes:,} when the backfill was begun. Put the file back as "
                "it was, or drop the generation (`driftline generations drop`) and begin anew"
            )


def estimate(settings: Settings, planned: Planned, workers: int) -> Estimate:
    """What is left to be read, and how long it takes, from a sample.

    Raises:
        DataError, MissingExtra: A file can't be read.
        LogUnavailable, LogGap, AuthenticationFailed: Kafka says so.
    """
    plan = planned.plan
    side_by_side = max(1, min(workers, plan.shares, os.cpu_count() or 1))
    if plan.request.source == "interactions":
        left = {
            partition: Extent(planned.progress[partition.number].next, extent.end)
            for partition, extent in extents_of(plan).items()
            if planned.progress[partition.number].next < extent.end
        }
        frames = sum(extent.end - extent.start for extent in left.values())
        events = round(frames * _events_a_frame(settings, left))
        return Estimate(frames, events, events / EVENTS_PER_S / side_by_side)
    count: Count = source_of(plan, settings).count()
    left_of_it = max(0, count.records - min(progress.next for progress in planned.progress.values()))
    # Each share reads all of it.
    return Estimate(left_of_it, left_of_it, left_of_it / EVENTS_PER_S)


def _events_a_frame(settings: Settings, left: Mapping[Partition, Extent]) -> float:
    """Events a frame, from some frames in the midst of some partitions."""
    sample = {}
    for partition, extent in list(left.items())[:_SAMPLE_PARTITIONS]:
        middle = (extent.start + extent.end) // 2
        sample[partition] = Extent(middle, min(middle + _SAMPLE_FRAMES, extent.end))
    frames = events = 0
    with closing(ExtentsReader(settings.kafka, sample)) as reader:
        while reader.unfinished:
            for message in reader.read(_SAMPLE_PARTITIONS * _SAMPLE_FRAMES, _SAMPLE_WAIT_S):
                frames += 1
                try:
                    events += len(decode_frame(message.value or b""))
                except InvalidFrame:
                    continue
    return events / max(1, frames)


# Refusals


def _check_partitions(name: str, topic: Topic, known: int | None) -> None:
    if known not in (None, topic.partitions):
        raise StateRefused(
            f"topic {topic.name} has {topic.partitions} partitions, generation {name} was filled with {known}: users "
            "are in other partitions now. Fill a generation with another name"
        )


def _check_model(name: str, recorded: Generation | None, bundle: Bundle) -> None:
    version = bundle.config.version
    if recorded is not None and recorded.model != version:
        raise UsageError(
            f"generation {name} holds vectors of the model {recorded.model_name} {recorded.model} (bundle "
            f"{recorded.bundle}), and this is {bundle.config.name} {version} (bundle {bundle.path}). Fill a generation "
            "with another name, or take that bundle"
        )


def _check_same(name: str, plan: Plan, request: Request, topic: Topic, bundle: Bundle) -> None:
    if plan.request != request:
        raise UsageError(
            f"generation {name} is being filled by another command: driftline backfill --generation {name}"
            f"{words_of(plan.request)}. Go on with that one, or drop the generation (`driftline generations drop {name}`)"
        )
    if plan.topic_id != topic.topic_id:
        raise StateRefused(
            f"topic {topic.name} was deleted and made anew since the backfill of {name} was begun: its id was "
            f"{plan.topic_id or 'none'}, it is {topic.topic_id or 'none'}. Drop the generation "
            f"(`driftline generations drop {name}`) and begin anew"
        )
    if plan.model != bundle.config.version:
        raise UsageError(
            f"the backfill of {name} was begun with version {plan.model} of a model, and the bundle {bundle.path} is "
            f"{bundle.config.version}. Take the bundle that it was begun with"
        )
    check_files(plan)


def _check_goes_on(name: str, request: Request, topic: Topic, found: Mapping[int, Watermark]) -> None:
    """A generation with watermarks can only go on with `interactions`."""
    if request.source != "interactions" or _range_options(request):
        raise UsageError(
            f"generation {name} is filled already. Without sources and without a range, the command goes on from where "
            f"it ends; to fill it with something else, drop it first (`driftline generations drop {name}`)"
        )
    missing = sorted(set(range(topic.partitions)) - set(found))
    if missing:
        raise StateRefused(
            f"generation {name} has watermarks for some partitions of {topic.name} and none for "
            f"{', '.join(map(str, missing))}: part of it is lost. Drop it (`driftline generations drop {name}`) and fill "
            "it anew"
        )


# Parts of a plan


def _ranges_after(
    name: str, admin: LogAdmin, topic: Topic, watermarks: Mapping[int, Watermark]
) -> Iterator[SourceRange]:
    """From the watermarks of a filled generation to where the log ends."""
    anew = f"Drop the generation (`driftline generations drop {name}`) and fill it anew"
    partitions = partitions_of(topic)
    extents = admin.extents(partitions)
    for partition in partitions:
        watermark, extent = watermarks[partition.number], extents[partition]
        filled = f"{topic.name} partition {partition.number}: {name} is filled up to offset {watermark.offset}"
        start = watermark.offset + 1
        if watermark.topic_id != topic.topic_id:
            raise StateRefused(
                f"topic {topic.name} was deleted and made anew: the watermarks of {name} belong to id "
                f"{watermark.topic_id or 'none'}, the topic is {topic.topic_id or 'none'}. {anew}"
            )
        if start > extent.end:
            raise StateRefused(f"{filled}, but its log ends at {extent.end}: it was cut. {anew}")
        if start < extent.start:
            raise LogGap(
                f"{filled}, but its log now starts at {extent.start}: retention deleted what lies between. {anew}"
            )
        yield SourceRange(topic.name, topic.topic_id, partition.number, start, extent.end)


def _of_raw_topics(plan: Plan, target: Target, topic: Topic, wanted: Range) -> Plan:
    """Later frames are read from the log's beginning, and what they hold of these events is left out by its offset."""
    raw = target.admin.topics(plan.request.names)
    ranges = [each for found in raw.values() for each in _ranges(target.admin, found, wanted)]
    marks = tuple(Mark(each.topic, each.topic_id, each.partition, each.end - 1) for each in ranges if each.end)
    whole = replace(plan, ranges=tuple(ranges), seals=_seals_at_start(target.admin, topic, marks))
    source_of(whole, target.settings)  # refuses a topic that is none of the settings'
    return whole


def _of_files(plan: Plan, target: Target, topic: Topic) -> Plan:
    """Later frames are those that the served generation has not applied yet: the files hold all before."""
    files = tuple(SourceFile(str(path), path.stat().st_size) for path in find_files(plan.request.names))
    watermarks = target.served.read_watermarks(range(topic.partitions))
    seals = []
    for partition, at_start in enumerate(_seals_at_start(target.admin, topic, ())):
        watermark = watermarks[partition]
        if watermark is None or watermark.topic_id != topic.topic_id:
            seals.append(at_start)
        else:
            marks = (Mark(s.topic, s.topic_id, s.partition, offset) for s, offset in watermark.marks.items())
            seals.append(Seal(watermark.offset, tuple(marks)))
    return replace(plan, files=files, seals=tuple(seals))


def _seals_at_start(admin: LogAdmin, topic: Topic, marks: tuple[Mark, ...]) -> tuple[Seal, ...]:
    partitions = partitions_of(topic)
    extents = admin.extents(partitions)
    return tuple(Seal(extents[partition].start - 1, marks) for partition in partitions)


def _ranges(admin: LogAdmin, topic: Topic, wanted: Range) -> list[SourceRange]:
    return [
        SourceRange(topic.name, topic.topic_id, partition.number, extent.start, extent.end)
        for partition, extent in resolve(admin, topic, wanted).items()
    ]


def _range_options(request: Request) -> list[tuple[str, str]]:
    options = {
        "--from-datetime": request.from_datetime,
        "--by-duration": request.by_duration,
        "--to-datetime": request.to_datetime,
        "--from-offsets": request.from_offsets,
    }
    return [(option, text) for option, text in options.items() if text is not None]


def shown_reads(plan: Plan) -> list[str]:
    """What a plan reads, one line a partition or file."""
    topics = [f"{each.topic} partition {each.partition}, offsets {each.start} to {each.end}" for each in plan.ranges]
    return topics + [f"{file.path}, {file.bytes:,} bytes" for file in plan.files]


def words_of(request: Request) -> str:
    """The options of a request, as they are written on the command line."""
    words = (
        [word for name in request.names for word in ("--raw", name)] if request.source == "raw" else [*request.names]
    )
    words += [word for option in _range_options(request) for word in option]
    if request.default_type not in ("", DEFAULT_TYPE):
        words += ["--type", request.default_type]
    if request.recommendations:
        words += ["--recommendations", request.recommendations, "--every", str(request.every)]
    return "".join(f" {shlex.quote(word)}" for word in words)
