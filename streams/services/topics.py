"""The topics: making them, looking at them, and adopting one that was deleted and made anew on purpose."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import stamina
from msgspec import Struct

from streams.errors import StateRefused, TopicMissing, UsageError
from streams.log.admin import LogAdmin
from streams.log.topics import Extent, Partition, Topic
from streams.settings import Settings
from streams.store.protocol import StateStore, Watermark

Role = Literal["source", "interactions", "recommendations", "dead letters"]

# A dead letter is the message as it came, plus our headers: Kafka's default for the raw topics is 1 MiB.
DEAD_LETTER_BYTES: Final = 4 * 1024 * 1024
# A topic is there for every broker a moment after it was made.
_SEEN_BY_S: Final = 10.0

_KEPT: Final = {
    "interactions": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    "dead letters": {"cleanup.policy": "delete", "max.message.bytes": str(DEAD_LETTER_BYTES)},
}


class CreatedTopic(Struct, frozen=True):
    """What became of one topic.

    Attributes:
        created: False: it was there already and was left alone.
        note: What is worth a look; None: nothing is.
    """

    topic: str
    role: Role
    created: bool
    partitions: int
    note: str | None


class TopicDescription(Struct, frozen=True):
    """A topic as it is.

    Attributes:
        topic_id: Kafka's own; "" on a broker that has none, None where there is no such topic, as all that follows.
        messages: Offsets between the starts and the ends of its logs.
        config: What matters to us of its configuration.
    """

    topic: str
    role: Role
    topic_id: str | None
    partitions: int | None
    messages: int | None
    end: int | None
    config: dict[str, str] | None


class OffsetChange(Struct, frozen=True):
    """One partition's next offset to be read, before and after; None: there was none."""

    partition: int
    before: int | None
    before_topic_id: str | None
    after: int


class Adoption(Struct, frozen=True):
    """What `driftline topics adopt` is about to do, or has done.

    Attributes:
        group: The group whose place is changed: in Kafka for a raw topic, in the store for `interactions`.
        reingest: Raw topics that ingest reads again from their beginnings.
    """

    topic: str
    role: Role
    topic_id: str
    group: str
    changes: list[OffsetChange]
    reingest: list[str] = []


def roles(settings: Settings) -> dict[str, Role]:
    """Every topic of the settings, and what it is for."""
    topics = settings.topics
    return {
        **dict.fromkeys(topics.sources, "source"),
        topics.interactions: "interactions",
        topics.recommendations: "recommendations",
        topics.dead_letters: "dead letters",
    }


def topic_config(role: Role, replication_factor: int) -> dict[str, str]:
    """The configuration that a topic is made with.

    `interactions` is the log that everything can be rebuilt from, so nothing of it is ever deleted. Dead letters may be
    larger than any raw message. With three copies, a write counts once two have it.
    """
    return {**_KEPT.get(role, {}), **({"min.insync.replicas": "2"} if replication_factor >= 3 else {})}


def create_missing_topics(settings: Settings, admin: LogAdmin) -> list[CreatedTopic]:
    """Make the topics of the settings that do not exist; returns when the cluster shows all of them.

    Raises:
        UsageError: Kafka refuses, as when there are fewer brokers than copies.
    """
    wanted = roles(settings)
    existing = admin.existing_topics(wanted)
    count, copies = settings.topics.partitions, settings.topics.replication_factor
    for name, role in wanted.items():
        if name not in existing:
            admin.create_topic(name, count, copies, topic_config(role, copies))
    seen: Mapping[str, Topic] = existing
    if len(existing) < len(wanted):
        for attempt in stamina.retry_context(
            on=TopicMissing, attempts=None, timeout=_SEEN_BY_S, wait_initial=0.05, wait_max=0.5
        ):
            with attempt:
                seen = admin.topics(wanted)
    return [_created(seen[name], role, count, existed=name in existing) for name, role in wanted.items()]


def _created(topic: Topic, role: Role, wanted: int, *, existed: bool) -> CreatedTopic:
    note = None
    if existed and topic.partitions != wanted:
        note = f"has {topic.partitions} partitions; topics.partitions ({wanted}) is for new topics only"
    return CreatedTopic(topic.name, role, not existed, topic.partitions, note)


def describe_topics(settings: Settings, admin: LogAdmin) -> list[TopicDescription]:
    """Every topic of the settings as it is, those that do not exist too."""
    wanted = roles(settings)
    existing = admin.existing_topics(wanted)
    # Without ids this is librdkafka's mock cluster, which has no configuration either.
    real = [name for name, topic in existing.items() if topic.topic_id]
    configs = admin.topic_configs(real)
    descriptions = []
    for name, role in wanted.items():
        topic = existing.get(name)
        if topic is None:
            descriptions.append(TopicDescription(name, role, None, None, None, None, None))
            continue
        extents = admin.extents(partitions_of(topic)).values()
        shown = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes", "min.insync.replicas")
        config = configs.get(name, {})
        descriptions.append(
            TopicDescription(
                name,
                role,
                topic.topic_id,
                topic.partitions,
                sum(extent.end - extent.start for extent in extents),
                sum(extent.end for extent in extents),
                {key: config[key] for key in shown if key in config},
            )
        )
    return descriptions


def partitions_of(topic: Topic) -> list[Partition]:
    """Every partition of a topic."""
    return [Partition(topic.name, number) for number in range(topic.partitions)]


# Adopting


@dataclass(frozen=True, slots=True)
class _NewMark:
    """A watermark and what is to take its place."""

    partition: int
    expected: Watermark
    new: Watermark


def adopt_source(settings: Settings, admin: LogAdmin, topic_name: str, *, dry_run: bool) -> Adoption:
    """Let ingest read a raw topic that was deleted and made anew, from its beginning.

    The marks in the store need no change: they carry the id of the old topic, so none of the new one's events is
    taken for a repeat.

    Args:
        admin: Of ingest's group.
        dry_run: Change nothing, only say what would be.

    Raises:
        UsageError: Ingest is running, or the log was cut without the topic being made anew.
    """
    _refuse_members(admin, settings.ingest.group, "ingest")
    topic = admin.topics([topic_name])[topic_name]
    keys = partitions_of(topic)
    extents, committed = admin.extents(keys), admin.committed_positions(keys)
    changes = []
    for key in keys:
        position, extent = committed[key], extents[key]
        if position is not None and position.topic_id == topic.topic_id:
            if position.offset > extent.end:
                raise UsageError(_cut(topic_name, key.number, position.offset, extent))
            continue
        changes.append(
            OffsetChange(
                key.number,
                None if position is None else position.offset,
                None if position is None else position.topic_id,
                extent.start,
            )
        )
    if not dry_run and changes:
        admin.set_committed(
            {Partition(topic_name, change.partition): change.after for change in changes}, topic.topic_id
        )
    return Adoption(topic_name, "source", topic.topic_id, settings.ingest.group, changes)


def adopt_interactions(
    settings: Settings, admin: LogAdmin, ingest: LogAdmin, store: StateStore, *, reingest: bool, dry_run: bool
) -> Adoption:
    """Let evolve read `interactions` after it was deleted and made anew, or after its retention cut unread frames.

    Each watermark goes before the first frame that the log still has and keeps its marks; so an event that was applied
    before and comes again, in whichever frame, is still dropped.

    Args:
        admin, ingest: Of evolve's and of ingest's group.
        reingest: Ingest shall read the raw topics again from their beginnings: that brings back the events that were
            only in the frames that are gone, and what was applied is dropped by its marks.
        dry_run: Change nothing, only say what would be.

    Raises:
        UsageError: Evolve is running (with ``reingest`` ingest must be stopped too), or there are no watermarks.
        StateRefused: The new topic has another number of partitions than the store was filled with.
    """
    _refuse_members(admin, settings.evolve.group, "evolve")
    if reingest:
        _refuse_members(admin, settings.ingest.group, "ingest")
    name = settings.topics.interactions
    topic = admin.topics([name])[name]
    filled_with = store.partitions()
    if filled_with is None:
        raise UsageError(
            f"the store at {settings.redis.masked_url} (generation {store.generation}) is empty, so there is "
            "no watermark to bring in step. Start evolve as it is; if it refuses, with `driftline evolve --rebuild`"
        )
    if filled_with != topic.partitions:
        raise StateRefused(
            f"topic {name} has {topic.partitions} partitions, the store was filled with {filled_with}: users would be "
            f"in other partitions. Make the topic anew with {filled_with} partitions, or set redis.key_prefix to a new "
            "name and rebuild with `driftline evolve --rebuild`"
        )
    extents = admin.extents(partitions_of(topic))
    marks = [
        _NewMark(number, watermark, replace(watermark, offset=extent.start - 1, topic_id=topic.topic_id))
        for number, watermark in store.read_watermarks(range(topic.partitions)).items()
        if watermark is not None and not _fits(watermark, topic, extent := extents[Partition(name, number)])
    ]
    sources = admin.topics(settings.topics.sources) if reingest else {}
    if not dry_run:
        for mark in marks:
            if not store.replace_watermark(mark.partition, mark.expected, mark.new):
                raise UsageError(
                    f"the watermark of {name} partition {mark.partition} changed meanwhile: an evolve is still "
                    "running. Stop it, and adopt again"
                )
        for source in sources.values():
            starts = {key: extent.start for key, extent in ingest.extents(partitions_of(source)).items()}
            ingest.set_committed(starts, source.topic_id)
    changes = [
        OffsetChange(mark.partition, mark.expected.offset + 1, mark.expected.topic_id, mark.new.offset + 1)
        for mark in marks
    ]
    return Adoption(name, "interactions", topic.topic_id, settings.evolve.group, changes, sorted(sources))


def _fits(watermark: Watermark, topic: Topic, extent: Extent) -> bool:
    return watermark.topic_id == topic.topic_id and extent.start <= watermark.offset + 1 <= extent.end


def _refuse_members(admin: LogAdmin, group: str, service: str) -> None:
    members = admin.members(group)
    if members:
        hosts = ", ".join(sorted({member.host.lstrip("/") for member in members}))
        raise UsageError(
            f"group {group} has {len(members)} member(s), on {hosts}: stop {service} first. One that was killed "
            "leaves the group after its session timeout (kafka.session_timeout_s)"
        )


def _cut(topic: str, partition: int, committed: int, extent: Extent) -> str:
    return (
        f"{topic} partition {partition} is still the same topic, but its log ends at {extent.end} and ingest had read "
        f"up to {committed}: Kafka lost the end of this log. New events got the offsets of lost ones, so none can be "
        "told from what was applied. Copy what it holds to a new topic, delete it, make it anew, and adopt that one"
    )
