from hashlib import blake2b

import pytest
from msgspec.structs import replace

from streams.contracts.recommendation import Trigger, recommendation_id

TRIGGER = Trigger("e1", "click", "i1", 1_767_225_600_000, "clicks", 2, 17, "id-1")


def test_an_id_never_changes_from_one_version_to_the_next() -> None:
    # Consumers drop repeats by it, so a change would break them. The recipe, from the docstring and by hand:
    recipe = blake2b(b"g1\0abc123\0u1\0e1\0clicks\0id-1\x002\x0017", digest_size=16).hexdigest()
    assert recommendation_id("g1", "abc123", "u1", TRIGGER) == recipe == "8fb6d2b316c12d68c37aa4c34e6b24e0"


@pytest.mark.parametrize(
    "other",
    [
        recommendation_id("g2", "abc123", "u1", TRIGGER),
        recommendation_id("g1", "abc124", "u1", TRIGGER),
        recommendation_id("g1", "abc123", "u2", TRIGGER),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, event_id="e2")),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, topic="views")),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, partition=3)),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, offset=18)),
        # The topic was deleted and made anew.
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, topic_id="id-2")),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, topic_id="")),
        # The parts must not run into each other.
        recommendation_id("g1", "abc123", "u1e", replace(TRIGGER, event_id="1")),
        recommendation_id("g1", "abc123", "u1", replace(TRIGGER, partition=21, offset=7)),
    ],
)
def test_an_id_differs_in_each_of_its_parts(other: str) -> None:
    assert other != recommendation_id("g1", "abc123", "u1", TRIGGER)


def test_what_the_place_in_the_log_decides_need_not_be_in_the_id() -> None:
    same = replace(TRIGGER, type="view", item_id="i9", event_time=5)
    assert recommendation_id("g1", "abc123", "u1", same) == recommendation_id("g1", "abc123", "u1", TRIGGER)
