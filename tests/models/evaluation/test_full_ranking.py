import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.splits import Judged
from models.errors import DataError
from models.evaluation.full_ranking import best_items, judge, queries_of
from models.evaluation.leave_one_out import evaluate_encoder, evaluate_popularity
from models.evaluation.recommender import Recommender
from models.spec import IntArray, Vectors, WindowRule
from tests.models.evaluation.toys import loss_by_loop, rank_by_loop, recommender, scores_by_loop, sequence

KNOWN = string.ascii_lowercase[:15]


def judged_at_random(seed: int, users: int, most: int = 30) -> Judged:
    """Users of up to `most` events, some of items that the model does not know (upper case)."""
    rng = random.Random(seed)
    contexts = [
        sequence(f"user-{number}", "".join(rng.choices(KNOWN + "XYZ", k=rng.randint(1, most))))
        for number in range(users)
    ]
    return Judged(tuple(contexts), tuple(rng.choices(KNOWN + "X", k=users)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), longest=st.integers(1, 12), popular=st.sampled_from(["", "cab"]))
def test_ranks_and_losses_are_those_of_a_plain_loop_over_users(seed: int, longest: int, popular: str) -> None:
    model = recommender(KNOWN, seed=seed, rule=WindowRule(longest, longest), popular=popular)
    judged = judged_at_random(seed, users=12)
    found = judge(model, queries_of(judged))
    for user, (context, target) in enumerate(zip(judged.contexts, judged.targets, strict=True)):
        assert found.ranks[user] == rank_by_loop(model, context.items, context.items, target)
        if target not in model.vocabulary.rows:
            assert np.isnan(found.losses[user])
        elif any(item in model.vocabulary.rows for item in context.items):
            expected = loss_by_loop(model, context.items, context.items, target)
            assert found.losses[user] == pytest.approx(expected, abs=1e-4)


def test_many_batches_keep_the_order_of_the_users() -> None:
    model = recommender(KNOWN)
    judged = judged_at_random(3, users=400)
    told: list[int] = []
    found = judge(model, queries_of(judged), told.append).ranks.tolist()
    expected = [
        rank_by_loop(model, context.items, context.items, target)
        for context, target in zip(judged.contexts, judged.targets, strict=True)
    ]
    assert found == expected
    assert sum(told) == 400


def test_hidden_events_change_the_vector_and_are_left_out_all_the_same() -> None:
    model = recommender("abcdef")
    judged = Judged((sequence("ana", "abcd"),), ("e",))
    found = judge(model, queries_of(judged, hidden=2)).ranks
    assert found.tolist() == [rank_by_loop(model, "ab", "abcd", "e")]
    assert found[0] <= 2  # only f competes


def test_a_window_without_a_known_item_is_recommended_what_is_popular() -> None:
    model = recommender("abcd", popular="cab")
    nobody = (sequence("ana", "XY"),)
    ranks = [int(judge(model, queries_of(Judged(nobody, (target,)))).ranks[0]) for target in "cabd"]
    assert ranks == [1, 2, 3, 4]
    assert best_items(model, queries_of(Judged(nobody, ("a",))), 5).ranking.rows.tolist() == [[3, 1, 2, 4, -1]]


def prefers_late_rows(vectors: Vectors, candidates: IntArray) -> Vectors:
    return candidates.astype(np.float32) + 0.0 * vectors[:, :1]


def test_a_scorer_orders_the_candidates_and_the_rest_follows_by_dot_product() -> None:
    plain = recommender(KNOWN, seed=5)
    model = recommender(KNOWN, seed=5, score=prefers_late_rows, candidates=4)
    judged = judged_at_random(5, users=60)
    found = judge(model, queries_of(judged)).ranks.tolist()
    for context, target, rank in zip(judged.contexts, judged.targets, found, strict=True):
        by_dot = rank_by_loop(plain, context.items, context.items, target)
        known = [item for item in context.items if item in model.vocabulary.rows]
        if target in model.vocabulary.rows and known and by_dot <= 4:
            scores = scores_by_loop(plain, context.items, context.items, target)
            candidates = sorted(scores, key=lambda item: -scores[item])[:4]
            assert rank == 1 + sum(item > target for item in candidates)  # rows are in the order of the letters
        else:
            assert rank == by_dot


def test_lists_are_the_best_unseen_items_of_a_plain_loop() -> None:
    model = recommender(KNOWN, seed=7)
    judged = judged_at_random(7, users=150)
    pools = best_items(model, queries_of(judged), 3)
    for user, context in enumerate(judged.contexts):
        if not any(item in model.vocabulary.rows for item in context.items):
            continue
        scores = scores_by_loop(model, context.items, context.items, "nothing")
        best = sorted(scores, key=lambda item: -scores[item])[:3]
        expected = [model.vocabulary.rows[item] for item in best]
        assert pools.ranking.rows[user].tolist() == expected + [-1] * (3 - len(expected))
        window = [model.vocabulary.rows[item] for item in context.items if item in model.vocabulary.rows]
        assert pools.windows[user, : len(window)].tolist() == window


def test_lists_of_a_model_with_a_scorer_are_its_candidates_in_its_order() -> None:
    plain = recommender(KNOWN, seed=5)
    model = recommender(KNOWN, seed=5, score=prefers_late_rows, candidates=4)
    queries = queries_of(Judged((sequence("ana", "ab"),), ("c",)))
    by_dot = best_items(plain, queries, 4).ranking.rows[0].tolist()
    assert best_items(model, queries, 2).ranking.rows[0].tolist() == sorted(by_dot, reverse=True)[:2]


def test_events_of_one_user_are_known_to_be_of_one_user() -> None:
    judged = Judged((sequence("bo", "ab"), sequence("ana", "a"), sequence("bo", "abc")), ("c", "b", "d"))
    assert queries_of(judged).users().tolist() == [1, 0, 1]


def test_nobody_to_judge_and_a_model_of_other_items_are_said_to_be() -> None:
    with pytest.raises(DataError, match="no user to judge"):
        judge(recommender("abc"), queries_of(Judged((), ())))
    other = Judged((sequence("ana", "xy"),), ("z",))
    with pytest.raises(DataError, match=r"'toy' knows none of the items .* such as 'z', the model such as 'a'"):
        judge(recommender("abc"), queries_of(other))
    with pytest.raises(DataError, match="knows none of the items"):
        best_items(recommender("abc"), queries_of(other), 2)


def test_what_training_looks_at_is_the_mean_over_users() -> None:
    model = recommender(KNOWN, rule=WindowRule(9, 9))
    judged = judged_at_random(11, users=40)
    figures = evaluate(model, judged)
    loops = [
        rank_by_loop(model, context.items, context.items, target)
        for context, target in zip(judged.contexts, judged.targets, strict=True)
    ]
    assert figures["hr@10"] == pytest.approx(sum(rank <= 10 for rank in loops) / 40)
    assert figures["ndcg@10"] == pytest.approx(sum(1 / np.log2(1 + rank) for rank in loops if rank <= 10) / 40)
    assert figures["mrr@10"] == pytest.approx(sum(1 / rank for rank in loops if rank <= 10) / 40)
    losses = [
        loss_by_loop(model, context.items, context.items, target)
        for context, target in zip(judged.contexts, judged.targets, strict=True)
        if target in KNOWN
    ]
    assert figures["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def evaluate(model: Recommender, judged: Judged) -> dict[str, float]:
    return evaluate_encoder(model.encode, model.item_vectors, judged, model.vocabulary, model.types, model.window.max)


def test_popularity_is_worked_out_by_hand() -> None:
    # Unseen items by count. ana: b 5, c 3, d 0 -> c is second. bo, of whom nothing is known: a first.
    judged = Judged((sequence("ana", "a"), sequence("bo", "X")), ("c", "a"))
    counts = {"a": 9, "b": 5, "c": 3}
    figures = evaluate_popularity(counts, judged, recommender("abcd").vocabulary)
    assert figures == pytest.approx(
        {
            "popularity_hr@10": 1.0,
            "popularity_ndcg@10": (1 / np.log2(3) + 1.0) / 2,
            "popularity_mrr@10": (0.5 + 1.0) / 2,
        }
    )
