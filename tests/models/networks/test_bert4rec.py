from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import BundleError
from models.networks import build_network
from models.networks.bert4rec import Bert4Rec
from models.networks.network import Batch
from tests.models.networks.circle import (
    CHANCE_NDCG,
    ITEMS,
    MAX_LENGTH,
    Trained,
    check_round_trip,
    check_windows,
    train_a_moment,
    windows,
)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_a_moment("bert4rec", epochs=50, dim=16, blocks=1)


def randomised(**settings: object) -> Bert4Rec:
    """Weights of every size, so that nothing hides behind small initial ones."""
    torch.manual_seed(0)
    network = build_network(
        "bert4rec", {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 6, "dropout": 0.0, **settings}
    )
    assert isinstance(network, Bert4Rec)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.4)
        network.events.items.weight[0] = 0.0
        network.events.types.weight[0] = 0.0
    return network.eval()


def test_it_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.5


def test_windows_are_encoded_alone_and_nothing_gives_nothing(trained: Trained) -> None:
    check_windows(trained.network)


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_serving_is_training_with_the_last_event_masked() -> None:
    network = randomised()
    # One event more than a window: what is learned from is what the longest window will ask.
    items, types, ages, lengths = windows(2, 5, 7)
    last = torch.arange(7) == lengths[:, None] - 1
    trained = network.at_every_place(items, types, ages, last)[last]
    known = ~last[:, :6]
    served = network(items[:, :6] * known, types[:, :6] * known, ages[:, :6] * known, lengths - 1)
    torch.testing.assert_close(trained, served, atol=1e-5, rtol=0)


def test_what_is_masked_is_not_seen_and_what_is_not_masked_is_seen_from_both_sides() -> None:
    network = randomised()
    items, types, ages, _ = windows(6, 6, 6)
    masked = torch.tensor([False, False, True, False, False, False]).expand(3, -1)
    before = network.at_every_place(items, types, ages, masked)
    for place, seen in ((2, False), (0, True), (5, True)):
        changed_items, changed_types = items.clone(), types.clone()
        changed_items[:, place] = ITEMS + 1 - items[:, place]
        changed_types[:, place] = 4 - types[:, place]
        moved = (network.at_every_place(changed_items, changed_types, ages, masked) - before).abs().amax((0, 2))
        assert (moved[[1, 2, 3, 4]] > 1e-3).tolist() == [seen] * 4


def test_the_loss_is_the_cross_entropy_over_what_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised()
    items, types, ages, lengths = windows(3, 7)
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, 1] = masked[1, 2] = masked[1, 6] = True
    monkeypatch.setattr(network, "_draw_masks", lambda *_: masked)
    loss = network.loss(Batch(items, types, ages, lengths, 0.0))
    with torch.inference_mode():
        vectors = network.at_every_place(items, types, ages, masked).numpy().astype(np.float64)
    table = network.item_table().detach().numpy().astype(np.float64)
    expected = []
    for row, place, visible_places in ((0, 1, (0, 2)), (1, 2, (0, 1, 3, 4, 5)), (1, 6, (0, 1, 3, 4, 5))):
        scores = table @ vectors[row, place]
        target = int(items[row, place])
        candidates = set(range(1, ITEMS + 1)) - {int(items[row, seen]) for seen in visible_places} | {target}
        expected.append(np.log(sum(np.exp(scores[item]) for item in candidates)) - scores[target])
    assert loss.targets == 3
    assert loss.value.item() == pytest.approx(np.mean(expected), abs=1e-4)


def test_the_configured_share_is_masked_and_at_least_one_event_of_every_segment() -> None:
    torch.manual_seed(3)
    items, types, ages, lengths = windows(*[2, 7] * 1_000)
    targets = randomised(masked=0.4, last_only=0.0).loss(Batch(items, types, ages, lengths, 0.0)).targets
    # A segment of n events: n * .4, and one more where none was drawn, with probability .6 ** n.
    assert targets / 1_000 == pytest.approx(2 * 0.4 + 0.6**2 + 7 * 0.4 + 0.6**7, rel=0.03)
    targets = randomised(masked=0.4, last_only=0.5).loss(Batch(items, types, ages, lengths, 0.0)).targets
    assert targets / 1_000 == pytest.approx((2 * 0.4 + 0.6**2 + 7 * 0.4 + 0.6**7 + 2) / 2, rel=0.03)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 9, "heads": 2}, "dim must be a multiple of heads, not 9 of 2"),
        ({"blocks": 0}, "dim, blocks and heads must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"masked": 0.0}, "masked must be above 0 and below 1, not 0.0"),
        ({"masked": 1.0}, "masked must be above 0 and below 1, not 1.0"),
        ({"last_only": 1.1}, "last_only must be at least 0 and at most 1, not 1.1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("bert4rec", {"items": 5, "types": 1, "max_length": 4, **setting})
