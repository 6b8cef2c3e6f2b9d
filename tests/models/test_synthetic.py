from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from models.data.events import LoggedEvent
from models.errors import DataError
from models.synthetic import CATALOGUE, LogPlan, Visitor, generate_log

PLAN = LogPlan(users=200, events=48, drift=0.5, seed=3)


def shift_of_interest(events: list[LoggedEvent]) -> float:
    """How far the topics of a visitor's last third are from those of the first: mean total variation, 0 to 1."""
    by_user: dict[str, list[str]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(CATALOGUE[event.item_id].topics[0])
    distances = []
    for topics in by_user.values():
        third = len(topics) // 3
        first, last = Counter(topics[:third]), Counter(topics[-third:])
        distances.append((first - last).total() / third)
    return sum(distances) / len(distances)


def test_the_catalogue_is_readable_and_unambiguous() -> None:
    assert len(CATALOGUE) == 240
    assert len({metadata.title for metadata in CATALOGUE.values()}) == 240
    assert CATALOGUE["espresso-02"].title == "Burr grinder"
    assert set(Counter(metadata.topics for metadata in CATALOGUE.values()).values()) == {30}


def test_the_same_plan_makes_the_same_log_and_another_seed_another() -> None:
    first = list(generate_log(PLAN))
    assert first == list(generate_log(PLAN))
    assert first != list(generate_log(LogPlan(users=200, events=48, drift=0.5, seed=4)))


def test_the_log_of_a_seed_never_changes_so_published_figures_stay_reproducible() -> None:
    events = list(generate_log(LogPlan(users=1, events=4, drift=0.5, seed=7)))
    assert [(event.item_id, event.type) for event in events] == [
        ("film-photography-14", "view"),
        ("film-photography-18", "view"),
        ("film-photography-19", "click"),
        ("film-photography-06", "view"),
    ]


def test_more_users_leave_the_others_as_they_are() -> None:
    more = LogPlan(users=201, events=48, drift=0.5, seed=3)
    assert list(generate_log(more))[: 200 * 48] == list(generate_log(PLAN))


def test_a_visitor_never_sees_an_item_twice_within_a_log_and_time_moves_on() -> None:
    events = list(generate_log(PLAN))
    assert len({(event.user_id, event.item_id) for event in events}) == len(events) == 200 * 48
    assert all(a.time_ms < b.time_ms for a, b in pairwise(events) if a.user_id == b.user_id)
    assert {event.type for event in events} == {"click", "view"}


def test_interests_change_more_the_stronger_the_drift() -> None:
    steady, drifting, wild = (
        shift_of_interest(list(generate_log(LogPlan(users=300, events=48, drift=drift, seed=1))))
        for drift in (0, 0.2, 1)
    )
    assert steady + 0.1 < drifting < wild - 0.1


def test_a_visitor_can_go_on_for_ever() -> None:
    visitor = Visitor("u", drift=1.0, rng=Random(1))
    events = [visitor.next_event(now_ms) for now_ms in range(1_000)]
    assert all(event.item_id in CATALOGUE for event in events)
    assert len({event.event_id for event in events}) == 1_000
    assert sum(visitor.taste.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("drift", [-0.1, 1.1])
def test_a_drift_out_of_range_is_refused(drift: float) -> None:
    with pytest.raises(DataError, match="drift must be between 0"):
        Visitor("u", drift, Random(1))
