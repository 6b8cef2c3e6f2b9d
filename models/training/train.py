"""Training: next-item prediction at every event of every sequence."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.events import UserSequence
from models.data.splits import Split
from models.errors import DataError
from models.evaluation.leave_one_out import evaluate_encoder
from models.losses import seen_items, unseen_cross_entropy
from models.networks.network import Network
from models.spec import Vectors
from models.training.segments import training_segments
from models.vocabulary import Vocabulary
from models.windows import WindowInputs, window_inputs

_POOL = 4_096  # segments sorted by length together: little padding, and still a different mix every epoch
_BETAS = (0.9, 0.98)
_CLIP = 1.0
_FINAL_RATE = 0.02  # of the peak, where the cosine ends


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How to train.

    Attributes:
        seed: Fixes the order of the data and the dropout; the caller seeds the network's initial parameters.
        epochs: Passes over the data at most.
        learning_rate: The peak.
        warmup_steps: Steps in which the rate rises to the peak, before a cosine takes it down.
        batch_tokens: Events a batch, padding counted.
        patience: Epochs without a better validation NDCG@10 after which training stops.
    """

    seed: int
    epochs: int = 30
    learning_rate: float = 4e-3
    warmup_steps: int = 200
    batch_tokens: int = 3_200
    patience: int = 5


@dataclass(frozen=True, slots=True)
class EpochReport:
    """How an epoch went.

    Attributes:
        epoch: Counted from 1.
        loss: Mean training loss, nats.
        validation: "hr@10" and "ndcg@10" on the validation events.
        best: Whether no epoch before was better.
    """

    epoch: int
    loss: float
    validation: dict[str, float]
    best: bool


def train_network(
    network: Network,
    split: Split,
    vocabulary: Vocabulary,
    types: Sequence[str],
    max_length: int,
    plan: TrainingPlan,
    report: Callable[[EpochReport], None] = lambda _: None,
) -> EpochReport:
    """Train a network in place and leave it with the parameters of its best epoch, in evaluation mode.

    AdamW (Loshchilov and Hutter, 2019) without weight decay, gradients clipped to norm 1, warm-up and cosine. Two runs
    with one plan, one initial network, one thread and one version of PyTorch give the same parameters. PyTorch's global
    random state is set.

    Args:
        network: The network to train.
        split: The training sequences, and the validation events that choose the epoch.
        vocabulary: The items.
        types: Event type names in the encoder's order.
        max_length: Longest window.
        plan: How to train.
        report: Called after every epoch.

    Returns:
        The report of the best epoch.

    Raises:
        DataError: No training sequence has two events, or the loss stopped being a number.
    """
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    if not any(len(sequence) >= 2 for sequence in split.train):
        raise DataError("no user has two events or more to train on, held-out ones not counted. Use more data")

    optimizer = torch.optim.AdamW(
        network.parameters(), lr=plan.learning_rate, betas=_BETAS, weight_decay=0.0, fused=True
    )
    tokens = sum(len(sequence) for sequence in split.train)
    steps = max(1, math.ceil(tokens / plan.batch_tokens)) * plan.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan.warmup_steps, steps))

    best: EpochReport | None = None
    best_parameters: dict[str, Tensor] = {}
    for epoch in range(1, plan.epochs + 1):
        network.train()
        total, count = 0.0, 0
        for inputs in _batches(split.train, vocabulary, types, max_length, plan.batch_tokens, rng):
            loss, events = _loss(network, inputs)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            total += loss.item() * events
            count += events
        if not math.isfinite(total):
            raise DataError(f"the loss is no number any more after epoch {epoch}; lower --learning-rate")
        network.eval()
        figures = evaluate_encoder(
            encoder_of(network), item_vectors_of(network), split.validation, vocabulary, types, max_length
        )
        better = best is None or figures["ndcg@10"] > best.validation["ndcg@10"]
        epoch_report = EpochReport(epoch, total / max(1, count), figures, better)
        report(epoch_report)
        if best is None or better:
            best, best_parameters = epoch_report, copy.deepcopy(network.state_dict())
        elif epoch - best.epoch >= plan.patience:
            break
    if best is None:
        raise DataError(f"nothing was trained: epochs must be at least 1, not {plan.epochs}")
    network.load_state_dict(best_parameters)
    return best


def encoder_of(network: Network) -> Callable[[WindowInputs], Vectors]:
    """The network as a function from encoder inputs to vectors, shape (batch, dim), float32."""

    def encode(inputs: WindowInputs) -> Vectors:
        with torch.inference_mode():
            vectors: Vectors = network(*_tensors(inputs), torch.from_numpy(inputs.lengths)).numpy()
        return vectors

    return encode


def item_vectors_of(network: Network) -> Vectors:
    """The network's item table as an array of its own, shape (items + 1, dim), float32."""
    vectors: Vectors = network.item_table().detach().numpy().copy()
    return vectors


def _tensors(inputs: WindowInputs) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(inputs.items), torch.from_numpy(inputs.types), torch.from_numpy(inputs.ages)


def _loss(network: Network, inputs: WindowInputs) -> tuple[Tensor, int]:
    """The mean loss over a batch of segments, and how many events it is the mean of."""
    items, types, ages = _tensors(inputs)
    targets = items[:, 1:]
    items = items[:, :-1]
    real = targets > 0
    vectors = network.at_every_event(items, types[:, :-1], ages[:, :-1])
    table = network.item_table()
    loss = unseen_cross_entropy(vectors[real], table, targets[real], seen_items(items, len(table))[real])
    return loss, int(real.sum())


def _batches(
    sequences: Sequence[UserSequence],
    vocabulary: Vocabulary,
    types: Sequence[str],
    max_length: int,
    batch_tokens: int,
    rng: np.random.Generator,
) -> Iterator[WindowInputs]:
    segments = training_segments(sequences, max_length, rng)
    order = rng.permutation(len(segments))
    batches: list[list[UserSequence]] = []
    for start in range(0, len(order), _POOL):
        pool = sorted((segments[index] for index in order[start : start + _POOL]), key=len)
        batch: list[UserSequence] = []
        for segment in pool:
            # The pool is sorted, so this segment is the batch's longest.
            if batch and (len(batch) + 1) * len(segment) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(segment)
        batches.append(batch)
    for index in rng.permutation(len(batches)):
        inputs = window_inputs(batches[index], vocabulary, types, max_length + 1)
        # A segment of unknown items alone, or of one known item, teaches nothing.
        if inputs.items.shape[1] >= 2:
            yield inputs


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return _FINAL_RATE + (1.0 - _FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))
