import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from transformers import AutoModelForTextEncoding, AutoTokenizer

from models.checkpoint import Checkpoint, TrainedModel, read_checkpoint, write_checkpoint
from models.errors import BundleError, DataError, MissingExtra
from models.networks import build_network, text_encoder
from models.networks.functions import encoder_of, item_vectors_of
from models.networks.network import Batch, TrainingData
from models.networks.text import TextNetwork, TwoTower, TwoTowerConfig
from models.networks.text_encoder import TextItems, item_text, whitening
from models.spec import CONFIG_FORMAT, ItemMetadata, ModelConfig, WindowRule
from models.training.plan import TrainingPlan
from models.training.train import train_network
from models.windows import window_inputs
from tests.models.networks.circle import (
    CHANCE_NDCG,
    Trained,
    check_export,
    check_round_trip,
    check_windows,
    train_a_moment,
)
from tests.models.networks.language_models import (
    COLD,
    HIDDEN,
    TOPICS,
    WIDE,
    rows_of,
    topical_log,
    write_language_model,
)

Doubles = npt.NDArray[np.float64]

FAMILIES = ("text", "text+mf", "text+id")
MAX_LENGTH = 5
TITLES = {"a": ItemMetadata("nice espresso", ("games", "music")), "b": ItemMetadata("the garden")}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_language_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, language_model: str) -> Trained:
    return train_a_moment(request.param, epochs=15, dim=16, text_model=language_model)


def build(language_model: str, family: str = "text", **settings: object) -> TextNetwork:
    torch.manual_seed(2)
    shape = {"items": 7 * len(TOPICS), "types": 1, "max_length": MAX_LENGTH, "dim": 8, **settings}
    network = build_network(family, {**shape, "text_model": language_model})
    assert isinstance(network, TextNetwork)
    return network


def batch_of(items: list[list[int]]) -> Batch:
    rows = torch.tensor(items)
    return Batch(rows, torch.ones_like(rows), torch.zeros(rows.shape), (rows > 0).sum(1), 0.0)


def text_vectors(folder: str, texts: Sequence[str]) -> Doubles:
    """Each text by itself, without padding: the mean of the last hidden states, scaled to length 1."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModelForTextEncoding.from_pretrained(folder)
    with torch.no_grad():
        means = [
            encoder(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0).numpy()
            for text in texts
        ]
    vectors = np.stack(means).astype(np.float64)
    unit: Doubles = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def test_it_learns_what_follows_what(trained: Trained) -> None:
    assert trained.ndcg() > CHANCE_NDCG + 0.4


def test_windows_are_encoded_alone_and_nothing_gives_nothing(trained: Trained) -> None:
    check_windows(trained.network)


@pytest.mark.parametrize("trained", ["text", "text+mf"], indirect=True)  # text+id exports the graph of text
def test_onnx_runtime_follows_it_without_a_language_model(trained: Trained) -> None:
    encoder = check_export(trained)
    assert len(encoder) < 250_000
    assert b"texts" not in encoder


def test_a_checkpoint_keeps_it(trained: Trained, tmp_path: Path) -> None:
    check_round_trip(trained, tmp_path)


def test_the_served_vector_is_the_one_trained_at_the_last_event(trained: Trained) -> None:
    network = trained.network
    assert isinstance(network, TextNetwork)
    items = torch.tensor([[3, 9, 4, 0], [8, 1, 30, 2]])
    types, ages, lengths = torch.ones_like(items), torch.zeros(items.shape), torch.tensor([3, 4])
    with torch.no_grad():
        every = network.at_every_event(items, types, ages)
        served = network(items, types, ages, lengths)
    torch.testing.assert_close(served, every[torch.arange(2), lengths - 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_that_nobody_touched_is_found_by_its_text(language_model: str, family: str) -> None:
    data, split = topical_log()
    network = build(language_model, family, dropout=0.0)
    plan = TrainingPlan(seed=1, epochs=10, learning_rate=0.02, warmup_steps=5, batch_tokens=64, validate_every=10)
    train_network(network, data, split, MAX_LENGTH, plan)

    inputs = window_inputs(split.test.contexts, data.vocabulary, data.types, MAX_LENGTH)
    scores = encoder_of(network)(inputs) @ item_vectors_of(network)[rows_of(data, COLD)].T
    topics = np.repeat(np.arange(len(TOPICS)), len(split.test.contexts) // len(TOPICS))
    # Six untouched items, one of each topic: by chance, or by popularity, every sixth is right.
    assert (scores.argmax(axis=1) == topics).mean() > 0.7


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5"])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_a_text_is_the_mean_of_its_tokens_whitened_over_the_catalogue(tmp_path: Path, kind: str, tuning: str) -> None:
    folder = write_language_model(tmp_path, kind)
    network = build(folder, tuning=tuning)
    data, _ = topical_log(1)
    shown = {"espresso-0": ItemMetadata("nice espresso", ("games", "music"))}
    network.prepare(TrainingData(data.sequences, data.vocabulary, data.types, shown))
    network.refresh()

    raw = text_vectors(folder, ["nice espresso. games, music", *data.vocabulary.ids[2:]])
    centred = raw - raw.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred)
    variances = sizes**2 / len(raw)
    stretched = centred @ directions.T / np.sqrt(variances + 0.1 * variances.mean())
    expected = stretched @ directions / np.sqrt((stretched**2).sum(axis=1).mean())
    # LoRA begins with updates of zero (Hu et al., 2022), so all three agree before the first step.
    np.testing.assert_allclose(network.texts.kept[1:].numpy(), expected, atol=2e-4)
    assert not network.texts.kept[0].any()


def test_whitening_shrinks_what_varies_most() -> None:
    # Variances 2 and 1/2, their mean 5/4; a tenth of it on top makes 17/8 and 5/8. Stretched by the roots' inverses, the
    # mean square is 16/17 + 4/5 = 148/85.
    vectors = torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]])
    scale = (85 / 148) ** 0.5
    expected = torch.tensor([[scale * (8 / 17) ** 0.5, 0.0], [0.0, scale * (8 / 5) ** 0.5]])
    torch.testing.assert_close(whitening(vectors), expected)
    torch.testing.assert_close(whitening(torch.ones(3, 2)), torch.eye(2))


def test_an_item_is_read_as_its_title_and_topics_or_by_its_id() -> None:
    assert item_text("a", TITLES["a"]) == "nice espresso. games, music"
    assert item_text("b", TITLES["b"]) == "the garden"
    assert item_text("c", None) == "c"


def test_nothing_is_fetched_for_a_folder(language_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    network = build(language_model, tuning="lora")
    network.prepare(topical_log(1)[0])
    assert network.texts.ready


def test_a_checkpoint_loads_where_the_language_model_is_gone(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "bert")
    data, _ = topical_log(1)
    tables = {}
    for tuning in ("frozen", "lora", "full"):
        network = build(folder, tuning=tuning)
        network.prepare(data)
        network.eval().refresh()
        assert isinstance(network, TwoTower)
        config = ModelConfig(
            CONFIG_FORMAT, "text", "", 8, WindowRule(max=MAX_LENGTH, keep=MAX_LENGTH), data.types, popular=()
        )
        checkpoint = Checkpoint(1, "text", msgspec.to_builtins(network.config), config, "", "", {})
        write_checkpoint(tmp_path / tuning, TrainedModel(checkpoint, network, data.vocabulary, data.metadata))
        tables[tuning] = item_vectors_of(network)
    shutil.rmtree(folder)
    for tuning in ("frozen", "lora", "full"):
        read = read_checkpoint(tmp_path / tuning).network
        read.refresh()
        np.testing.assert_array_equal(item_vectors_of(read), tables[tuning])


def test_lora_trains_low_rank_updates_and_full_tuning_everything_that_is_read(language_model: str) -> None:
    def trained_numbers(tuning: str) -> int:
        texts = build(language_model, tuning=tuning, lora_rank=3).texts
        return sum(parameter.numel() for parameter in texts.parameters() if parameter.requires_grad)

    assert trained_numbers("frozen") == 0
    # Rank 3 for query, key, value and output, and for the two layers of the feed-forward.
    assert trained_numbers("lora") == 3 * (4 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + WIDE))
    attention = 4 * (HIDDEN * HIDDEN + HIDDEN)
    feed_forward = 2 * HIDDEN * WIDE + HIDDEN + WIDE
    norms = 3 * 2 * HIDDEN
    words = len(AutoTokenizer.from_pretrained(language_model))
    embeddings = (words + 40 + 2) * HIDDEN  # words, positions, segments; not the pooler, which is not read
    assert trained_numbers("full") == attention + feed_forward + norms + embeddings


def test_what_was_learned_of_the_texts_reaches_every_item_and_the_base_of_lora_stays(language_model: str) -> None:
    data, split = topical_log(2)
    plan = TrainingPlan(seed=1, epochs=2, learning_rate=0.02, warmup_steps=1, batch_tokens=100)
    network = build(language_model, tuning="lora", encoded_items=4)
    network.prepare(data)
    before = network.texts.kept.clone()
    assert network.texts.encoder is not None
    base = {n: p.clone() for n, p in network.texts.encoder.named_parameters() if "lora_" not in n}
    train_network(network, data, split, MAX_LENGTH, plan)
    moved = (network.texts.kept - before).norm(dim=1)
    # Items without a training event too.
    assert (moved[1:] > 1e-4).all()
    after = dict(network.texts.encoder.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in base.items())


def test_a_tuned_language_model_in_bfloat16_keeps_its_vectors_in_float32(language_model: str) -> None:
    texts = build(language_model, tuning="full").texts
    texts.prepare(topical_log(1)[0])
    exact = texts.kept.clone()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = texts(torch.tensor([4, 2]))
    assert vectors.dtype == texts.kept.dtype == torch.float32
    # bfloat16 has less than three digits, and whitening stretches what was lost.
    assert 0 < (texts.kept - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_step_encodes_no_more_items_than_it_may_and_only_these_have_a_gradient(language_model: str) -> None:
    network = build(language_model, tuning="full", encoded_items=3)
    network.prepare(topical_log(1)[0])
    network.train()
    encoder = network.texts.encoder
    assert encoder is not None
    encoded: list[int] = []
    handle = encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: encoded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    torch.manual_seed(0)
    loss = network.loss(batch_of([[1, 2, 3, 4, 5, 0], [9, 8, 10, 11, 12, 13]]))
    torch.autograd.backward(loss.value)
    handle.remove()
    assert encoded == [3]
    assert all(parameter.grad is not None for name, parameter in encoder.named_parameters() if "query" in name)
    chosen = network.texts.choose(torch.tensor([[2, 0, 5], [5, 2, 2]]))
    assert sorted(chosen.tolist()) == [2, 5]


def test_what_a_step_encodes_takes_the_place_of_what_was_kept(language_model: str) -> None:
    texts = build(language_model, tuning="full").texts
    data, _ = topical_log(1)
    texts.prepare(data)
    correct = texts.kept.clone()
    texts.kept[1:] = 7.0
    vectors = texts(torch.tensor([4, 2]))
    torch.testing.assert_close(vectors[[2, 4]], correct[[2, 4]])
    torch.testing.assert_close(texts.kept[[2, 4]], correct[[2, 4]])
    assert (vectors[[1, 3, 5]] == 7.0).all()
    assert vectors.requires_grad
    assert not texts.kept.requires_grad


def test_the_language_model_learns_more_slowly_than_the_rest(language_model: str) -> None:
    for tuning, share in (("lora", 0.1), ("full", 0.01)):
        network = build(language_model, tuning=tuning)
        shares = {name.split(".")[1]: network.rate_share(name) for name, _ in network.named_parameters()}
        assert shares.pop("encoder") == share
        assert set(shares.values()) == {1.0}


def test_the_language_model_has_no_dropout_in_training(language_model: str) -> None:
    network = build(language_model, tuning="full").train()
    assert network.texts.encoder is not None
    assert network.training
    assert not any(module.training for module in network.texts.encoder.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_without_training_events_is_no_candidate_in_training(language_model: str, family: str) -> None:
    data, _ = topical_log()
    network = build(language_model, family, dropout=0.0)
    network.prepare(data)
    network.train()
    warm = rows_of(data, [f"espresso-{place}" for place in range(6)])
    losses = []
    for factor in (1.0, 50.0):
        network.texts.kept[rows_of(data, COLD)] *= factor
        torch.manual_seed(0)
        losses.append(network.loss(batch_of([warm])).value.item())
    assert losses[0] == losses[1]
    network.texts.kept[rows_of(data, ["music-0"])] *= 50.0
    torch.manual_seed(0)
    assert network.loss(batch_of([warm])).value.item() != losses[0]


def test_binary_cross_entropy_leaves_out_an_item_drawn_against_itself(
    language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(language_model, objective="bce", negatives=2, l2=0.5)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([[2, 1], [3, 1]]))
    vectors = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    candidates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])
    # User 1, target 1: score 1; against items 2 (score 2) and 1, itself. Squares: 5; 1; 1 and 1.
    first = np.log1p(np.exp(-1.0)) + np.log1p(np.exp(2.0)) / 2 + 0.5 * (5 + 1 + 1 + 1)
    # User 2, target 2: score -1; against items 3 (score 1) and 1 (score 0). Squares: 1; 1; 5 and 1.
    second = np.log1p(np.exp(1.0)) + (np.log1p(np.exp(1.0)) + np.log(2.0)) / 2 + 0.5 * (1 + 1 + 5 + 1)
    value = network.loss_of(vectors, candidates, torch.tensor([1, 2]), torch.zeros((2, 1), dtype=torch.int64))
    assert value.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_training_with_binary_cross_entropy_learns_too(language_model: str) -> None:
    trained = train_a_moment("text", epochs=15, dim=16, text_model=language_model, objective="bce")
    assert trained.ndcg() > CHANCE_NDCG + 0.2


def test_minilm_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"driftline\[text\]"):
        build("minilm")


def test_lora_without_peft_names_the_extra(language_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"peft is not installed.*driftline\[text\]"):
        build(language_model, tuning="lora")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "half"}, "Invalid enum value 'half'"),
        ({"lora_rank": 0}, "lora_rank, text_tokens and encoded_items must be at least 1"),
        ({"dim": 9}, "dim must be a multiple of heads, not 9 of 4"),
        ({"blocks": 0}, "blocks, heads and negatives must be at least 1"),
        ({"l2": -1.0}, "l2 must be at least 0, not -1.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"objective": "bpr"}, "Invalid enum value 'bpr'"),
        ({"text_config": {"hidden_size": 3}}, "text_config is no configuration of a language model"),
        ({"text_config": {"model_type": "llama"}, "tuning": "full"}, "is no text encoder: Unrecognized"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(language_model: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        build(language_model, **settings)


def test_a_folder_without_a_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no folder or hub name of a language model"):
        build(str(tmp_path))


def test_a_language_model_that_vanished_or_changed_is_named(language_model: str, tmp_path: Path) -> None:
    data, _ = topical_log(1)
    config = msgspec.to_builtins(build(language_model).texts.config)
    lost = TextItems(msgspec.convert({**config, "text_model": str(tmp_path)}, TwoTowerConfig))
    with pytest.raises(DataError, match="cannot be loaded"):
        lost.prepare(data)
    wide = {**config["text_config"], "hidden_size": 32}
    for tuning in ("frozen", "full"):
        other = TextItems(msgspec.convert({**config, "text_config": wide, "tuning": tuning}, TwoTowerConfig))
        with pytest.raises(DataError, match="Leave text_config out"):
            other.prepare(data)


def test_the_tower_attends_without_items_of_its_own(language_model: str) -> None:
    network = build(language_model)
    assert isinstance(network, TwoTower)
    tower: nn.Module = network.tower
    learned = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert "events.items.weight" not in learned
    assert "events.types.weight" in learned
