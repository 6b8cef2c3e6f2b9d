from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5Config, T5Model

from models.errors import BundleError
from models.networks import build_network
from models.networks.network import Batch
from models.networks.seq2seq import Seq2Seq
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
    return train_a_moment("seq2seq", epochs=15, batch_tokens=400, dim=16, blocks=1)


def randomised(**settings: object) -> Seq2Seq:
    """Weights of every size, so that nothing hides behind small initial ones."""
    torch.manual_seed(0)
    network = build_network(
        "seq2seq", {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, "dim": 6, "dropout": 0.0, **settings}
    )
    assert isinstance(network, Seq2Seq)
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


def test_the_vector_is_t5s_first_decoder_state_after_the_window_an_end_token_and_the_last_event() -> None:
    network = randomised(dim=8)
    with torch.no_grad():
        # T5 knows tokens only, and no distances between decoder and encoder.
        network.bias_across.zero_()
        network.events.types.weight.zero_()
        network.events.gaps.weight.zero_()
    end = ITEMS + 1
    t5 = T5Model(
        T5Config(
            vocab_size=ITEMS + 2,
            d_model=8,
            d_kv=4,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            # A bucket a distance, to 7.
            relative_attention_num_buckets=28,
            relative_attention_max_distance=14,
            eos_token_id=end,
        )
    )
    t5.train(False)
    t5.encoder.load_state_dict(network.encoder.state_dict(), strict=False)
    t5.decoder.load_state_dict(network.decoder.state_dict(), strict=False)
    with torch.no_grad():
        scaled = network.item_table() * np.sqrt(8)
        t5.shared.weight.copy_(torch.cat((scaled, network.end[None])))
    items, types, ages, lengths = windows(1, 4, 6)
    tokens = torch.zeros(3, 7, dtype=torch.int64)
    tokens[:, :6] = items
    tokens[torch.arange(3), lengths] = end
    with torch.inference_mode():
        last = items[torch.arange(3), lengths - 1]
        expected = t5(
            input_ids=tokens, attention_mask=(tokens > 0).long(), decoder_input_ids=last[:, None]
        ).last_hidden_state[:, 0]
        torch.testing.assert_close(network(items, types, ages, lengths), expected, atol=1e-5, rtol=0)


def test_the_loss_is_the_cross_entropy_of_the_item_after_the_cut_over_what_was_not_before() -> None:
    network = randomised(horizon=1)
    items, types, ages, lengths = windows(2, 2, 2)  # two events can be cut in one way only
    loss = network.loss(Batch(items, types, ages, lengths, 0.0))
    table = network.item_table().detach().numpy().astype(np.float64)
    with torch.inference_mode():
        vectors = network(items[:, :1], types[:, :1], ages[:, :1], torch.ones(3, dtype=torch.int64)).numpy()
    expected = []
    for vector, (before, target) in zip(vectors.astype(np.float64), items.tolist(), strict=True):
        scores = table @ vector
        candidates = set(range(1, ITEMS + 1)) - {before} | {target}
        expected.append(np.log(sum(np.exp(scores[item]) for item in candidates)) - scores[target])
    assert loss.targets == 3
    assert loss.value.item() == pytest.approx(np.mean(expected), abs=1e-4)


def test_the_decoder_predicts_up_to_the_horizon_from_every_cut() -> None:
    network = randomised(horizon=3)
    batch = Batch(*windows(7), 0.0)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        found.add(network.loss(batch).targets)
    # Seven events, cut after 1 to 6: 3, 3, 3, 3, 2 or 1 are left within the horizon.
    assert found == {1, 2, 3}


def test_no_prediction_sees_what_it_predicts_or_what_comes_later() -> None:
    network = randomised(horizon=6)
    items, types, ages, lengths = windows(7, 7)
    changed = items.clone()
    changed[:, 4:] = ITEMS + 1 - changed[:, 4:]
    earlier = 0
    for seed in range(40):
        torch.manual_seed(seed)
        before = network.loss(Batch(items, types, ages, lengths, 0.0)).vectors
        torch.manual_seed(seed)
        after = network.loss(Batch(changed, types, ages, lengths, 0.0)).vectors
        assert before is not None
        assert after is not None
        steps = len(before) // 2  # 7 less the cut
        same = ((before - after).abs().amax(1) < 1e-5).view(2, steps)
        # Step n predicts the event at place `7 - steps + n`; only from the fifth on was one before it changed.
        assert same.tolist() == [[7 - steps + step <= 4 for step in range(steps)]] * 2
        earlier += int(same.sum())
    assert earlier > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dim": 9, "heads": 2}, "dim must be a multiple of heads, not 9 of 2"),
        ({"horizon": 0}, "dim, blocks, heads and horizon must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build_network("seq2seq", {"items": 5, "types": 1, "max_length": 4, **setting})
