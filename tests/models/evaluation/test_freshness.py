import numpy as np
import pytest

from models.data.events import UserSequence
from models.data.splits import Judged
from models.errors import DataError
from models.evaluation.freshness import HIDDEN, measure_freshness
from models.evaluation.metrics import RESAMPLES
from models.evaluation.recommender import Recommender
from models.spec import Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs
from tests.models.evaluation.toys import rank_by_loop, recommender, sequence

ITEMS = [f"item-{number:02d}" for number in range(40)]


def follows_the_newest() -> Recommender:
    """Knows that item n + 1 follows item n, and otherwise prefers the last items."""
    items = len(ITEMS) + 1
    vectors = np.eye(items, dtype=np.float32)
    vectors[0] = 0.0

    def encode(inputs: WindowInputs) -> Vectors:
        newest = inputs.items[np.arange(len(inputs)), np.maximum(inputs.lengths - 1, 0)]
        encoded = np.tile(np.linspace(0.1, 0.5, items, dtype=np.float32), (len(inputs), 1))
        encoded[np.arange(len(inputs)), np.minimum(newest + 1, items - 1)] = 1.0
        return encoded

    return Recommender(Vocabulary(ITEMS), (), WindowRule(50, 50), encode, vectors)


def walk(user_id: str, events: int) -> UserSequence:
    """The first items, one after the other."""
    return UserSequence(user_id, tuple(ITEMS[:events]), ("click",) * events, tuple(range(events)))


def test_a_model_that_lives_on_the_newest_event_is_lost_without_it() -> None:
    contexts = tuple(walk(f"user-{number}", 12 + number) for number in range(10))
    found = measure_freshness(follows_the_newest(), Judged(contexts, tuple(ITEMS[12 + n] for n in range(10))))
    assert [line.hidden for line in found.lines] == list(HIDDEN)
    assert found.users == 10
    # With the newest hidden, the successor is an item that was seen; the 18 and more items after the target come first.
    assert [line.figures["hr@10"].mean for line in found.lines] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert [line.lost.interval.mean for line in found.lines] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [line.lost.p_value for line in found.lines] == pytest.approx([1.0] + [2 / (RESAMPLES + 1)] * 5)


def test_the_same_users_are_in_every_line_and_hidden_items_do_not_compete() -> None:
    model = recommender("abcdefghijklmnopqrst", seed=3)
    rng = np.random.default_rng(0)
    long = [sequence(f"user-{n}", "".join(rng.permutation(list("abcdefghijklmnop"))[:12])) for n in range(30)]
    short = [sequence("short", "abcdefghij")]
    targets = tuple("qrst"[number % 4] for number in range(30))
    found = measure_freshness(model, Judged((*long, *short), (*targets, "t")))
    assert found.users == 30
    for line in found.lines:
        ranks = [
            rank_by_loop(model, user.items[: 12 - line.hidden], user.items, target)
            for user, target in zip(long, targets, strict=True)
        ]
        gains = [1 / np.log2(1 + rank) for rank in ranks]
        assert line.figures["ndcg@10"].mean == pytest.approx(sum(gains) / 30)
        fresh = found.lines[0].figures["ndcg@10"].mean
        assert line.lost.interval.mean == pytest.approx(fresh - line.figures["ndcg@10"].mean)
    assert found.lines[0].lost.p_value == 1.0
    assert all(line.lost.p_value >= 2 / (RESAMPLES + 1) for line in found.lines)


def test_users_with_too_few_events_alone_are_said_to_be() -> None:
    with pytest.raises(DataError, match="hides up to 10 events of a user, and no user has 11"):
        measure_freshness(recommender("abc"), Judged((sequence("ana", "ab" * 5),), ("c",)))
