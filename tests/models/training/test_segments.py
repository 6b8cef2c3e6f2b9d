from collections import Counter

import numpy as np
import pytest

from models.data.events import UserSequence
from models.training.segments import batch_inputs, batches_of, training_segments
from models.vocabulary import Vocabulary


def sequence(user_id: str, items: str) -> UserSequence:
    return UserSequence(user_id, tuple(items), ("click",) * len(items), tuple(range(len(items))))


def test_a_sequence_that_fits_is_one_segment_and_one_event_is_none() -> None:
    rng = np.random.default_rng(0)
    assert training_segments([sequence("u", "abcde"), sequence("v", "a")], 4, rng) == [sequence("u", "abcde")]


def test_segments_of_a_long_sequence_make_every_event_a_target_at_most_once() -> None:
    long = sequence("u", "".join(chr(65 + i) for i in range(23)))
    targets: Counter[str] = Counter()
    for seed in range(40):
        segments = training_segments([long], 5, np.random.default_rng(seed))
        assert all(2 <= len(segment) <= 6 for segment in segments)
        found = Counter(item for segment in segments for item in segment.items[1:])
        assert max(found.values()) == 1
        targets += found
    # All but the very first event, over the epochs.
    assert set(targets) == set(long.items[1:])


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_every_segment_is_in_one_batch_and_no_batch_is_larger_than_asked(tokens: int) -> None:
    segments = [sequence(f"u{n}", "a" * (2 + n % 17)) for n in range(200)]
    batches = batches_of(segments, tokens, np.random.default_rng(0))
    assert Counter(segment.user_id for batch in batches for segment in batch) == Counter(s.user_id for s in segments)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= tokens


def test_what_has_fewer_than_two_known_items_teaches_nothing_and_is_left_out() -> None:
    vocabulary = Vocabulary(["a", "b"])
    batches = [[sequence("u", "axb"), sequence("v", "xxb"), sequence("w", "xx")], [sequence("z", "xa")]]
    (inputs,) = batch_inputs(batches, vocabulary, ("click",), 5)
    assert inputs.items.tolist() == [[1, 2]]
    assert inputs.lengths.tolist() == [2]
