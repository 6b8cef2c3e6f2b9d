"""What the screen says of a visitor, on vectors of two numbers that can be worked out by hand."""

import numpy as np
import pytest

from models.spec import Vectors
from streams.demo.watch import Act, Suggestion, TopicDirections, Watch
from tests.streams.demo.watched import METADATA, VECTORS, VOCABULARY, row


def vector(*numbers: float) -> Vectors:
    return np.array(numbers, np.float32)


@pytest.fixture
def watch() -> Watch:
    return Watch(TopicDirections(VECTORS, VOCABULARY, METADATA), METADATA)


def test_a_vector_leans_to_a_topic_by_the_cosine_with_the_mean_of_its_items() -> None:
    directions = TopicDirections(VECTORS, VOCABULARY, METADATA)
    assert directions.topics == ("Directions", "Wild")
    # The mean of east and north points to the north-east, 45 degrees from east; west is opposite.
    assert directions.leans(vector(3, 0)) == pytest.approx([0.70710678, -1.0])
    assert directions.leans(vector(0, 2)) == pytest.approx([0.70710678, 0.0])


def test_a_vector_without_a_direction_leans_to_nothing() -> None:
    assert TopicDirections(VECTORS, VOCABULARY, METADATA).leans(vector(0, 0)) == [0.0, 0.0]


def test_a_catalogue_without_topics_has_none() -> None:
    assert TopicDirections(VECTORS, VOCABULARY, {}).leans(vector(1, 0)) == []


def test_the_newest_act_comes_first_with_title_and_topic(watch: Watch) -> None:
    watch.observe(row(1, (1, 0), ["east", "west", "no-metadata"], ["north"], None), 0.0)
    assert watch.acts == [
        Act("no-metadata", "", "click", 2000),
        Act("West", "Wild", "view", 1000),
        Act("East", "Directions", "view", 0),
    ]


def test_a_row_that_did_not_change_is_not_taken_in_again(watch: Watch) -> None:
    assert watch.observe(row(1, (1, 0), ["east"], ["north"], None), 0.0)
    assert not watch.observe(row(1, (1, 0), ["east"], ["north"], None), 1.0)


def test_an_item_counts_as_new_for_three_seconds_after_it_entered_the_list(watch: Watch) -> None:
    watch.observe(row(1, (1, 0), ["east"], ["north"], None), 10.0)
    assert watch.suggestions(10.0) == [Suggestion("North", "Directions", ["East"], is_new=False)]

    watch.observe(row(2, (1, 0), ["east"], ["west", "north"], 0.1), 20.0)
    assert [(s.title, s.is_new) for s in watch.suggestions(22.9)] == [("West", True), ("North", False)]
    assert [s.is_new for s in watch.suggestions(23.0)] == [False, False]


def test_drift_is_shown_as_the_engine_says_it_and_from_the_start_as_the_vectors_do(watch: Watch) -> None:
    watch.observe(row(1, (1, 0), ["east"], ["north"], None), 0.0)
    assert (list(watch.drifts), watch.moved) == ([], 0.0)

    watch.observe(row(2, (0, 1), ["east"], ["north"], 0.25), 1.0)
    watch.observe(row(3, (-2, 0), ["east"], ["north"], 0.5), 2.0)
    assert list(watch.drifts) == [0.25, 0.5]
    assert watch.moved == pytest.approx(2.0)  # east to west: the cosine is -1
