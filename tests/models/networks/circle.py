"""A log in which the next item is certain, and what every family that learns from order must do with it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.golden import random_inputs
from export.onnx_graph import check_parity, export_encoder
from models.checkpoint import Checkpoint, TrainedModel, read_checkpoint, write_checkpoint
from models.data.events import UserSequence
from models.data.splits import Split, leave_one_out
from models.evaluation.leave_one_out import evaluate_encoder
from models.evaluation.onnx_runtime import onnx_encoder
from models.networks import build_network
from models.networks.functions import encoder_of, item_vectors_of
from models.networks.network import Network, TrainingData
from models.spec import CONFIG_FORMAT, ModelConfig, WindowRule
from models.training.plan import TrainingPlan
from models.training.train import train_network
from models.vocabulary import Vocabulary

ITEMS, EVENTS, MAX_LENGTH = 30, 7, 6
# A user has seen 6 of the 30 items; whoever knows no better than chance among the other 24 reaches
# sum(1 / log2(rank + 1) for ranks 1 to 10) / 24 = 4.544 / 24.
CHANCE_NDCG = 0.189


@dataclass(frozen=True, slots=True)
class Trained:
    """A network after a moment of training, and what it learned from."""

    name: str
    network: Network
    config: dict[str, object]
    data: TrainingData
    split: Split

    def ndcg(self) -> float:
        """NDCG@10 on the test events."""
        return evaluate_encoder(
            encoder_of(self.network),
            item_vectors_of(self.network),
            self.split.test,
            self.data.vocabulary,
            self.data.types,
            MAX_LENGTH,
        )["ndcg@10"]


def circle(users: int = 90) -> tuple[TrainingData, Split]:
    """Users who walk the same circle of items, 3 users from each item, 7 events each."""
    sequences = []
    for user in range(users):
        items = tuple(f"i{(user + step) % ITEMS:02d}" for step in range(EVENTS))
        types = tuple("click" if (user + step) % 2 else "view" for step in range(EVENTS))
        sequences.append(UserSequence(f"u{user:02d}", items, types, tuple(60_000 * step for step in range(EVENTS))))
    split = leave_one_out(sequences)
    vocabulary = Vocabulary([f"i{place:02d}" for place in range(ITEMS)])
    return TrainingData(split.train, vocabulary, ("click", "view"), {}), split


def train_a_moment(
    name: str, epochs: int = 20, learning_rate: float = 0.02, batch_tokens: int = 200, **settings: object
) -> Trained:
    """A network of a family, all else default, trained on the circle."""
    data, split = circle()
    config = {"items": ITEMS, "types": 2, "max_length": MAX_LENGTH, **settings}
    torch.set_num_threads(1)
    torch.manual_seed(1)
    network = build_network(name, config)
    plan = TrainingPlan(
        seed=1,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=5,
        batch_tokens=batch_tokens,
        validate_every=10,
    )
    train_network(network, data, split, MAX_LENGTH, plan)
    return Trained(name, network, config, data, split)


def windows(*lengths: int, seed: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder inputs of random windows."""
    inputs = random_inputs(np.array(lengths), ITEMS, 2, np.random.default_rng(seed))
    items, types, ages, lengths_ = (torch.from_numpy(array) for array in inputs.as_feed().values())
    return items, types, ages, lengths_


def check_windows(network: Network) -> None:
    """Windows without events give zeros, padding changes nothing, and the order of a batch does not matter."""
    with torch.inference_mode():
        items, types, ages, lengths = windows(4, 0, 6, 1)
        vectors = network(items, types, ages, lengths)
        assert not vectors[1].any()
        assert (vectors[[0, 2, 3]].norm(dim=1) > 0).all()
        assert not network(*windows(0)).any()
        assert not network.item_table()[0].any()
        for row, length in ((0, 4), (3, 1)):
            part = slice(row, row + 1)
            alone = network(items[part, :length], types[part, :length], ages[part, :length], lengths[part])
            torch.testing.assert_close(alone[0], vectors[row], atol=1e-5, rtol=0)


def check_export(trained: Trained) -> bytes:
    """ONNX Runtime gives what the network gives, for windows of every length.

    `tests/export/test_families.py` sees to it for the family's usual form: this is for other forms, and for looking at
    the graph.
    """
    encoder = export_encoder(trained.network, MAX_LENGTH)
    table = item_vectors_of(trained.network)
    parity = check_parity(encoder_of(trained.network), onnx_encoder(encoder), table, 2, MAX_LENGTH)
    assert parity.windows > 4 * (MAX_LENGTH + 1)
    return encoder


def check_round_trip(trained: Trained, path: Path) -> None:
    """A network read from its checkpoint, without the training data, gives the same vectors."""
    model_config = ModelConfig(
        format=CONFIG_FORMAT,
        name=trained.name,
        version="",
        dim=trained.network.item_table().shape[1],
        window=WindowRule(max=MAX_LENGTH, keep=MAX_LENGTH),
        types=trained.data.types,
        popular=(),
    )
    checkpoint = Checkpoint(
        format=1,
        network=trained.name,
        network_config=trained.config,
        config=model_config,
        command="",
        data_sha256="",
        metrics={},
    )
    write_checkpoint(path, TrainedModel(checkpoint, trained.network, trained.data.vocabulary, {}))
    read = read_checkpoint(path).network
    read.refresh()
    with torch.inference_mode():
        torch.testing.assert_close(read(*windows(5, 0, 2)), trained.network(*windows(5, 0, 2)), atol=0, rtol=0)
        torch.testing.assert_close(read.item_table(), trained.network.item_table(), atol=0, rtol=0)
