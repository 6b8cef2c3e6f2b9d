"""How far the pipeline is: what lies in the logs, what of it is applied, by whom."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from models.errors import BundleError
from streams.contracts.generation import Generation, Serving
from streams.errors import AuthenticationFailed
from streams.log.admin import LogAdmin
from streams.log.topics import Committed, Extent, Partition, Topic
from streams.services.bundle import find_bundle
from streams.services.topics import partitions_of
from streams.settings import Settings
from streams.store.protocol import StateStore, Watermark


class PartitionStatus(Struct, frozen=True):
    """One partition of a topic that is read.

    Attributes:
        applied: Offset up to which all is done, that one not included: the group's commit for a raw topic, the
            watermark + 1 for `interactions`; None where nothing is recorded for this topic (nor for one of its name
            that was deleted since).
        lag: Offsets still to be done, of those that the log has.
    """

    partition: int
    log_start: int
    log_end: int
    applied: int | None
    lag: int


class StepStatus(Struct, frozen=True):
    """A topic that a service reads: events for a raw topic, frames for `interactions`.

    Attributes:
        log_end: Sum over the partitions, as ``applied`` (from the log's start where nothing is recorded) and ``lag``.
        made_anew: The topic was deleted and made anew, and not adopted: `driftline topics adopt`.
    """

    topic: str
    partitions: int
    log_end: int
    applied: int
    lag: int
    made_anew: bool
    offsets: list[PartitionStatus]


class OutputStatus(Struct, frozen=True):
    """A topic that apps read; ``log_end`` is the sum over its partitions."""

    topic: str
    partitions: int
    log_end: int


class ModelStatus(Struct, frozen=True):
    """The bundle that is served; ``error`` says why there is no name."""

    name: str | None
    version: str | None
    error: str | None


class Worker(Struct, frozen=True):
    """A process that reads, and the partitions it has, by topic."""

    client_id: str
    host: str
    partitions: dict[str, list[int]]


class Workers(Struct, frozen=True):
    """The members of both consumer groups."""

    ingest: list[Worker]
    evolve: list[Worker]


class PipelineStatus(Struct, frozen=True):
    """The whole pipeline.

    Attributes:
        total_lag: Events of the raw topics plus frames of `interactions` that are still to be done. 0 exactly when
            every event that was produced before this question is in Redis or dead-lettered.
        generation: That is served; what is said of the store is said of it.
        watermarks: For each partition of `interactions` the offset of the last applied frame (while none is, the one
            before the log's first); None where no worker has had the partition yet.
        store_partitions: How many partitions the store was filled with; None: it is empty.
        workers: None: the broker does not tell (librdkafka's mock cluster).
    """

    total_lag: int
    raw: list[StepStatus]
    interactions: StepStatus
    generation: str
    watermarks: dict[str, int | None]
    store_partitions: int | None
    recommendations: OutputStatus
    dead_letters: OutputStatus
    model: ModelStatus
    workers: Workers | None


def pipeline_status(
    settings: Settings, admin: LogAdmin, store: StateStore, serving: Serving, record: Generation | None
) -> PipelineStatus:
    """Look at everything once, in the order that makes ``total_lag`` true.

    An event is first in a raw log, then in a frame, and only then below ingest's commit; a frame is first in its log,
    and then below the watermark. So: raw ends, then commits, then ends of `interactions`, then watermarks. What is at
    or beyond each end by then was produced after the question.

    Args:
        admin: Of ingest's group.
        store: Of the generation that is served.
        record: What is recorded of that.

    Raises:
        TopicMissing: A topic of the settings does not exist.
    """
    names = settings.topics
    topics = admin.topics([*names.sources, names.interactions, names.recommendations, names.dead_letters])
    raw = {name: topics[name] for name in names.sources}
    raw_partitions = [key for topic in raw.values() for key in partitions_of(topic)]
    interactions = topics[names.interactions]
    keys = partitions_of(interactions)

    raw_extents = admin.extents(raw_partitions)
    committed = admin.committed_positions(raw_partitions)
    extents = admin.extents(keys)
    watermarks = store.read_watermarks(range(interactions.partitions))

    steps = [_source_status(topic, raw_extents, committed) for topic in raw.values()]
    of_frames = _interactions_status(interactions, extents, watermarks)
    return PipelineStatus(
        sum(step.lag for step in [*steps, of_frames]),
        steps,
        of_frames,
        serving.generation,
        {str(number): None if mark is None else mark.offset for number, mark in watermarks.items()},
        store.partitions(),
        _output_status(topics[names.recommendations], admin),
        _output_status(topics[names.dead_letters], admin),
        _model_status(settings, serving, record),
        _workers(settings, admin, interactions),
    )


def _source_status(
    topic: Topic, extents: Mapping[Partition, Extent], committed: Mapping[Partition, Committed | None]
) -> StepStatus:
    offsets, made_anew = [], False
    for key in partitions_of(topic):
        position, extent = committed[key], extents[key]
        # An offset of a deleted topic says nothing of this one; one without an id may be any tool's, and ingest takes
        # it while it is inside the log.
        foreign = position is not None and (
            (position.topic_id not in ("", topic.topic_id)) or position.offset > extent.end
        )
        made_anew |= foreign
        offsets.append(_partition_status(key, extent, None if position is None or foreign else position.offset))
    return _step(topic, offsets, made_anew=made_anew)


def _interactions_status(
    topic: Topic, extents: Mapping[Partition, Extent], watermarks: Mapping[int, Watermark | None]
) -> StepStatus:
    offsets, made_anew = [], False
    for key in partitions_of(topic):
        watermark, extent = watermarks[key.number], extents[key]
        foreign = watermark is not None and (watermark.topic_id != topic.topic_id or watermark.offset + 1 > extent.end)
        made_anew |= foreign
        offsets.append(_partition_status(key, extent, None if watermark is None or foreign else watermark.offset + 1))
    return _step(topic, offsets, made_anew=made_anew)


def _partition_status(key: Partition, extent: Extent, applied: int | None) -> PartitionStatus:
    # What retention deleted is no lag any more: nobody can apply it.
    lag = extent.end - max(extent.start, extent.start if applied is None else applied)
    return PartitionStatus(key.number, extent.start, extent.end, applied, max(0, lag))


def _step(topic: Topic, offsets: Iterable[PartitionStatus], *, made_anew: bool) -> StepStatus:
    offsets = list(offsets)
    end, lag = sum(each.log_end for each in offsets), sum(each.lag for each in offsets)
    return StepStatus(topic.name, topic.partitions, end, end - lag, lag, made_anew, offsets)


def _output_status(topic: Topic, admin: LogAdmin) -> OutputStatus:
    ends = admin.extents(partitions_of(topic)).values()
    return OutputStatus(topic.name, topic.partitions, sum(extent.end for extent in ends))


def _model_status(settings: Settings, serving: Serving, record: Generation | None) -> ModelStatus:
    try:
        config = find_bundle(settings, serving, record).config
    except BundleError as error:
        return ModelStatus(None, None, str(error))
    return ModelStatus(config.name, config.version, None)


def _workers(settings: Settings, admin: LogAdmin, topic: Topic) -> Workers | None:
    if not topic.topic_id:
        return None
    try:
        return Workers(_members(admin, settings.ingest.group), _members(admin, settings.evolve.group))
    except AuthenticationFailed:
        return None  # describing a group is a right of its own, and the rest of the answer needs it not


def _members(admin: LogAdmin, group: str) -> list[Worker]:
    workers = []
    for member in admin.members(group):
        partitions: dict[str, list[int]] = {}
        for partition in sorted(member.partitions):
            partitions.setdefault(partition.topic, []).append(partition.number)
        workers.append(Worker(member.client_id, member.host.lstrip("/"), partitions))
    return workers
