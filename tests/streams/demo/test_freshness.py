"""Freshness is measured from outside: these tests hold the clock and the store."""

from dataclasses import dataclass, field

import pytest

from streams.contracts.frame import partition_of
from streams.demo.freshness import FreshnessProbe, percentile
from streams.demo.traffic import Sent
from streams.interest.engine import UserRow
from streams.interest.window import STATE_VERSION, UserState, encode_state
from streams.store.memory import MemoryStore
from streams.store.protocol import Swap, Watermark

PARTITIONS = 4


@dataclass
class World:
    """A store to write rows to, and the time."""

    store: MemoryStore = field(default_factory=MemoryStore)
    now_s: float = 0.0
    offsets: dict[int, int] = field(default_factory=dict)

    def probe(self) -> FreshnessProbe:
        return FreshnessProbe(self.store, PARTITIONS, lambda: self.now_s)

    def apply(self, user: str, *event_ids: str) -> None:
        count = len(event_ids)
        state = UserState(
            STATE_VERSION, ["item"] * count, ["click"] * count, list(range(count)), list(event_ids), False, b""
        )
        partition = partition_of(user, PARTITIONS)
        before = self.offsets.get(partition)
        self.offsets[partition] = 0 if before is None else before + 1
        (result,) = self.store.swap(
            [
                Swap(
                    partition,
                    before,
                    Watermark(self.offsets[partition], "", PARTITIONS),
                    {user: UserRow(b"\0\0\0\0", b"", encode_state(state), "1", 0)},
                )
            ]
        )
        assert result.swapped


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, None),
        ([7.0], 99, 7.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 51, 3.0),
        ([float(value) for value in range(1, 101)], 99, 99.0),
        ([float(value) for value in range(1, 102)], 99, 100.0),
        ([2.0, 1.0], 0, 1.0),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: float, expected: float | None
) -> None:
    assert percentile(values, percent) == expected


def test_an_event_is_fresh_when_its_users_row_has_it() -> None:
    world = World()
    probe = world.probe()
    probe.offer(Sent("ada", "ada-1", 100.0))
    world.now_s = 100.010
    assert probe.look() == 1
    assert probe.all() == []

    world.apply("ada", "ada-1")
    world.now_s = 100.025
    assert probe.look() == 0
    assert probe.all() == pytest.approx([25.0])


def test_an_event_is_found_although_a_later_one_has_come_meanwhile() -> None:
    world = World()
    probe = world.probe()
    probe.offer(Sent("ada", "ada-1", 100.0))
    world.apply("ada", "ada-1", "ada-2")
    world.now_s = 100.040
    probe.look()
    assert probe.all() == pytest.approx([40.0])


def test_another_users_row_makes_nothing_fresh() -> None:
    world = World()
    probe = world.probe()
    probe.offer(Sent("ada", "same-id", 100.0))
    world.apply("bob", "same-id")
    assert probe.look() == 1


def test_an_event_is_a_sample_50_ms_after_the_last_whether_that_one_is_fresh_or_not() -> None:
    world = World()
    probe = world.probe()
    for millisecond in range(0, 1020, 30):  # 34 events; every second one comes 60 ms after the last sample
        probe.offer(Sent(f"user-{millisecond}", "event", millisecond / 1000))
    assert probe.look() == 17


def test_what_still_waits_at_the_end_counts_as_readable_by_then_and_is_not_dropped() -> None:
    world = World()
    probe = world.probe()
    probe.offer(Sent("ada", "ada-1", 100.0))
    probe.offer(Sent("bob", "bob-1", 100.1))
    world.apply("bob", "bob-1")
    world.now_s = 101.0
    probe.settle()
    assert sorted(probe.all()) == pytest.approx([900.0, 1000.0])
    assert probe.look() == 0
