import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.onnx_graph import check_scorer_parity, export_scorer
from models.errors import BundleError
from models.evaluation.onnx_runtime import onnx_scorer
from models.networks import build_network
from models.networks.functions import encoder_of, item_vectors_of, score_of
from models.networks.ncf import Ncf
from models.networks.network import Batch
from models.ranking import rank_candidates
from models.spec import IntArray, Vectors
from models.windows import window_inputs
from tests.models.networks.circle import (
    CHANCE_NDCG,
    ITEMS,
    MAX_LENGTH,
    Trained,
    check_export,
    check_round_trip,
    check_windows,
    train_a_moment,
    windows,
)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("ncf", dim=16, candidates=10)


@pytest.fixture(scope="module")
def network(trained: Trained) -> Ncf:
    assert isinstance(trained.network, Ncf)
    return trained.network


def randomised(**settings: object) -> Ncf:
    """Weights of every size, so that nothing hides behind small initial ones."""
    torch.manual_seed(0)
    network = build_network("ncf", {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 6, **settings})
    assert isinstance(network, Ncf)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
        for embedding in (network.events.items, network.events.types, network.scored_items):
            embedding.weight[0] = 0.0
    return network.eval()


def test_retrieval_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.5


def top_hits(trained: Trained, network: Ncf) -> float:
    """The share of test events whose item the scorer puts first of all unseen ones."""
    test, vocabulary = trained.split.test, trained.data.vocabulary
    inputs = window_inputs(test.contexts, vocabulary, trained.data.types, MAX_LENGTH)
    vectors, targets = encoder_of(network)(inputs), np.array([vocabulary.rows[item] for item in test.targets])
    # Everything is a candidate, so the retrieval has no part in the order.
    ranking = rank_candidates(vectors, item_vectors_of(network), inputs.items, score_of(network), ITEMS, 1)
    return float((ranking.rows[:, 0] == targets).mean())


def test_the_scorer_learns_what_follows_what(trained: Trained, network: Ncf) -> None:
    assert top_hits(trained, network) > 0.8


def test_the_perceptron_alone_has_learned_it_too(trained: Trained, network: Ncf) -> None:
    # The products alone would do, since they begin as the retrieval.
    perceptron = copy.deepcopy(network)
    with torch.no_grad():
        perceptron.factor_weights.zero_()
    hits = top_hits(trained, perceptron)
    assert hits > 0.3


def test_windows_are_encoded_alone_and_nothing_gives_nothing(network: Ncf) -> None:
    check_windows(network)


def test_onnx_runtime_follows_encoder_and_scorer(trained: Trained, network: Ncf) -> None:
    check_export(trained)
    scorer = export_scorer(network)
    found = check_scorer_parity(score_of(network), onnx_scorer(scorer), encoder_of(network), ITEMS, 2, MAX_LENGTH)
    assert 0 < found < 1e-4
    graph = onnx.load_from_string(scorer).graph
    described = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert described == {"vector": ["batch", 32], "candidates": ["batch", "n"], "scores": ["batch", "n"]}


def test_a_scorer_that_differs_is_refused(network: Ncf) -> None:
    score = score_of(network)

    def off(vectors: Vectors, candidates: IntArray) -> Vectors:
        scores: Vectors = score(vectors, candidates) + np.where(candidates == 3, np.float32(0.01), np.float32(0.0))
        return scores

    def no_numbers(vectors: Vectors, candidates: IntArray) -> Vectors:
        return score(vectors, candidates) * np.float32(np.nan)

    for exported, message in ((off, "differ from PyTorch's by 0.01, allowed is 0.0001"), (no_numbers, "no finite")):
        with pytest.raises(BundleError, match=message):
            check_scorer_parity(score, exported, encoder_of(network), ITEMS, 2, MAX_LENGTH)


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_served_vector_is_the_one_trained_at_the_last_event() -> None:
    network = randomised()
    items, types, ages, lengths = windows(1, 3, 6, 5)
    with torch.inference_mode():
        every = network.at_every_event(items, types, ages)
        served = network(items, types, ages, lengths)
    torch.testing.assert_close(served, every[torch.arange(4), lengths - 1], atol=1e-5, rtol=0)


def test_no_event_depends_on_a_later_one() -> None:
    network = randomised()
    items, types, ages, _ = windows(6, 6)
    with torch.inference_mode():
        before = network.at_every_event(items, types, ages)
        items[:, 4:] = ITEMS + 1 - items[:, 4:]
        after = network.at_every_event(items, types, ages)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-5, rtol=0)
    assert (after[:, 4:] - before[:, 4:]).abs().amax(2).min() > 1e-2


def test_the_score_is_weighted_products_and_a_perceptron() -> None:
    network = randomised()
    parts = {name: parameter.detach().double().numpy() for name, parameter in network.named_parameters()}
    vectors = np.random.default_rng(2).standard_normal((2, 12))
    candidates = np.array([[3, 30, 0], [7, 3, 3]])
    for user in range(2):
        factors, interest = vectors[user, :6], vectors[user, 6:]
        for place, row in enumerate(candidates[user]):
            products = parts["factor_weights"] * factors * parts["events.items.weight"][row]
            hidden = np.maximum(interest + parts["scored_items.weight"][row], 0)
            hidden = np.maximum(parts["perceptron.1.weight"] @ hidden + parts["perceptron.1.bias"], 0)
            expected = products.sum() + (parts["perceptron.3.weight"] @ hidden)[0]
            found = score_of(network)(vectors.astype(np.float32), candidates)[user, place]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_retrieval_ignores_what_only_the_scorer_reads() -> None:
    table = randomised().item_table()
    assert table.shape == (ITEMS + 1, 12)
    assert not table[:, 6:].any()
    assert table[1:, :6].abs().min() > 0


def test_neither_a_seen_item_nor_the_target_is_a_negative() -> None:
    # Of two items one is seen and the other comes next: retrieval and scorer have nothing to tell it from.
    network = randomised(items=2, dropout=0.0).train()
    items = torch.tensor([[1, 2]])
    loss = network.loss(Batch(items, items.clamp_max(1), items * 0.0, torch.tensor([2]), 0.0))
    assert loss.value.item() == 0.0


def test_sampled_negatives_weigh_as_many_as_they_stand_for() -> None:
    # To a scorer that gives everything 0 the target is one of as many as are unseen: of 30 items 2, or 12.
    network = randomised(candidates=5)
    with torch.no_grad():
        network.factor_weights.zero_()
        for parameter in network.perceptron.parameters():
            parameter.zero_()
    vectors, targets = torch.randn(50, 12), torch.full((50,), 20)
    for seen, unseen in (([1, 2], 28), (list(range(1, 13)), 18)):
        loss = network._scorer_loss(vectors, targets, torch.tensor([seen]).expand(50, -1))
        np.testing.assert_allclose(loss.item(), np.log(unseen), rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dim", 1, "dim at least 2"),
        ("heads", 0, "heads and candidates must be at least 1"),
        ("candidates", 0, "heads and candidates must be at least 1"),
        ("dropout", 1.0, "dropout must be"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        randomised(**{setting: value})
