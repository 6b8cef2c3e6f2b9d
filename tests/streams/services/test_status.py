from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import pytest

from streams.contracts.frame import Source
from streams.contracts.generation import Serving
from streams.log.admin import LogAdmin
from streams.log.topics import Committed, Extent, GroupMember, Partition, Topic
from streams.services.status import PipelineStatus, pipeline_status
from streams.settings import Settings
from streams.store.memory import MemoryStore
from streams.store.protocol import Watermark

SETTINGS = Settings.model_validate({"topics": {"sources": {"clicks": "click"}}, "model": {"bundle": "/no/such/bundle"}})
TOPICS = {
    "clicks": Topic("clicks", "id-c", 2),
    "interactions": Topic("interactions", "id-i", 2),
    "recommendations": Topic("recommendations", "id-r", 1),
    "events.dlq": Topic("events.dlq", "id-d", 1),
}
OUTPUTS = {Partition("recommendations", 0): Extent(0, 5), Partition("events.dlq", 0): Extent(0, 1)}


class Cluster:
    """Answers like `LogAdmin`, and notes what it was asked."""

    def __init__(
        self,
        extents: Mapping[Partition, Extent],
        committed: Mapping[Partition, Committed | None],
        asked: list[str],
        topics: Mapping[str, Topic] = TOPICS,
    ) -> None:
        self._extents = {**extents, **OUTPUTS}
        self._committed = committed
        self._topics = topics
        self.asked = asked

    def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        return {name: self._topics[name] for name in names}

    def extents(self, partitions: Sequence[Partition]) -> dict[Partition, Extent]:
        self.asked.append(f"ends of {partitions[0].topic}")
        return {partition: self._extents[partition] for partition in partitions}

    def committed_positions(self, partitions: Sequence[Partition]) -> dict[Partition, Committed | None]:
        self.asked.append("commits")
        return {partition: self._committed[partition] for partition in partitions}

    def members(self, group: str) -> list[GroupMember]:
        return [GroupMember(f"of {group}", "/10.0.0.1", [Partition("clicks", 1), Partition("clicks", 0)])]


class Store(MemoryStore):
    def __init__(self, watermarks: Mapping[int, Watermark], asked: list[str]) -> None:
        super().__init__()
        self._asked = asked
        self.set_partitions(2)
        for partition, watermark in watermarks.items():
            self.replace_watermark(partition, None, watermark)

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        self._asked.append("watermarks")
        return super().read_watermarks(partitions)


def status(
    clicks: Sequence[tuple[Extent, Committed | None]],
    frames: Sequence[tuple[Extent, Watermark | None]],
    asked: list[str] | None = None,
    topics: Mapping[str, Topic] = TOPICS,
) -> PipelineStatus:
    asked = [] if asked is None else asked
    extents = {
        **{Partition("clicks", n): extent for n, (extent, _) in enumerate(clicks)},
        **{Partition("interactions", n): extent for n, (extent, _) in enumerate(frames)},
    }
    committed = {Partition("clicks", n): position for n, (_, position) in enumerate(clicks)}
    watermarks = {n: watermark for n, (_, watermark) in enumerate(frames) if watermark is not None}
    cluster = cast("LogAdmin", Cluster(extents, committed, asked, topics))
    return pipeline_status(SETTINGS, cluster, Store(watermarks, asked), Serving("g1"), None)


def at(offset: int, topic_id: str = "id-i") -> Watermark:
    return Watermark(offset, topic_id, 2, {Source("clicks", "id-c", 0): 9})


DONE = ((Extent(0, 10), Committed(10, "id-c")), (Extent(0, 0), None))
APPLIED = ((Extent(0, 4), at(3)), (Extent(0, 0), None))


def test_nothing_is_behind_when_commits_and_watermarks_are_at_the_ends() -> None:
    found = status(DONE, APPLIED)
    assert found.total_lag == 0
    assert (found.raw[0].log_end, found.raw[0].applied, found.interactions.applied) == (10, 10, 4)
    assert found.watermarks == {"0": 3, "1": None}
    assert (found.recommendations.log_end, found.dead_letters.log_end) == (5, 1)
    assert found.workers is not None
    assert found.workers.ingest[0].partitions == {"clicks": [0, 1]}
    assert found.workers.evolve[0].client_id == "of driftline-evolve"


def test_what_an_event_passes_first_is_looked_at_first() -> None:
    asked: list[str] = []
    status(DONE, APPLIED, asked)
    assert asked[:4] == ["ends of clicks", "commits", "ends of interactions", "watermarks"]


@pytest.mark.parametrize(
    ("extent", "position", "lag", "made_anew"),
    [
        (Extent(0, 10), None, 10, False),  # ingest has never run
        (Extent(4, 10), None, 6, False),  # nor has it, and retention has deleted four
        (Extent(0, 10), Committed(7, "id-c"), 3, False),
        (Extent(8, 10), Committed(7, "id-c"), 2, False),  # retention deleted what was not read: nobody can any more
        (Extent(0, 10), Committed(7, "old-id"), 10, True),  # the commit belongs to a topic that is gone
        (Extent(0, 10), Committed(12, "id-c"), 10, True),  # the log was cut
        (Extent(0, 10), Committed(10, ""), 0, False),  # a commit that no id was given with
    ],
)
def test_the_lag_of_a_raw_partition(extent: Extent, position: Committed | None, lag: int, made_anew: bool) -> None:
    found = status([(extent, position), (Extent(0, 0), None)], APPLIED)
    assert (found.total_lag, found.raw[0].lag, found.raw[0].made_anew) == (lag, lag, made_anew)


@pytest.mark.parametrize(
    ("extent", "watermark", "lag", "made_anew"),
    [
        (Extent(0, 4), None, 4, False),
        (Extent(0, 4), at(-1), 4, False),
        (Extent(0, 4), at(2), 1, False),
        (Extent(3, 4), at(0), 1, False),
        (Extent(0, 4), at(3, "old-id"), 4, True),
        (Extent(0, 4), at(9), 4, True),
    ],
)
def test_the_lag_of_a_partition_of_frames(
    extent: Extent, watermark: Watermark | None, lag: int, made_anew: bool
) -> None:
    found = status(DONE, [(extent, watermark), (Extent(0, 0), None)])
    assert (found.total_lag, found.interactions.lag, found.interactions.made_anew) == (lag, lag, made_anew)


def test_a_bundle_that_cannot_be_read_is_told_and_the_rest_is_answered() -> None:
    found = status(DONE, APPLIED)
    assert found.model.name is None
    assert "/no/such/bundle" in (found.model.error or "")


def test_on_the_embedded_broker_nobody_tells_the_workers() -> None:
    without_ids = {name: Topic(name, "", topic.partitions) for name, topic in TOPICS.items()}
    assert status(((Extent(0, 0), None),) * 2, ((Extent(0, 0), None),) * 2, topics=without_ids).workers is None
