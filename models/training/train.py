"""Training a network: steps, epochs, validation, and stopping when it no longer gets better."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.data.splits import Judged, Split
from models.errors import DataError
from models.evaluation.leave_one_out import evaluate_encoder
from models.networks.functions import encoder_of, item_vectors_of, score_of, tensors_of
from models.networks.network import Batch, FittedNetwork, LearnedNetwork, Network, ScoringNetwork, TrainingData
from models.training.averaging import ParameterAverage
from models.training.distributed import Workers
from models.training.plan import EpochReport, TrainingPlan
from models.training.regularisers import Regulariser
from models.training.resume import Progress, read_progress, write_progress
from models.training.segments import batch_inputs, batches_of, training_segments
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

_BETAS = (0.9, 0.98)
_CLIP = 1.0
_FINAL_RATE = 0.02  # of the peak, where the cosine ends
_JUDGED_IN_TRAINING = 1_000  # users whose training events are judged beside the validation events


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training gave.

    Attributes:
        best_epoch: The epoch whose parameters the network has; 0 for a network that is fitted at once.
        validation: Its figures on the validation events.
        seconds: How long it took, over all its runs.
        history: All epochs; none for a network that is fitted at once.
    """

    best_epoch: int
    validation: dict[str, float]
    seconds: float
    history: tuple[EpochReport, ...]


def train_network(
    network: Network,
    data: TrainingData,
    split: Split,
    max_length: int,
    plan: TrainingPlan,
    *,
    report: Callable[[EpochReport], None] = lambda _: None,
    step: Callable[[float], None] = lambda _: None,
    progress_file: Path | None = None,
    resume: bool = False,
) -> Outcome:
    """Train a network in place and leave it with the parameters of its best epoch, in evaluation mode.

    AdamW (Loshchilov and Hutter, 2019), gradients clipped to norm 1, warm-up and cosine; what is judged and kept is the
    average of the parameters over the last steps (`ParameterAverage`). Two runs with one plan, one
    initial network, one number of threads and one version of PyTorch give the same parameters, whether or not one of
    them was killed and resumed on the way. PyTorch's global random state is set. Run by torchrun, every process takes
    its share of each epoch's batches, and gradients are averaged.

    Args:
        network: The network to train, on the device to train on.
        data: What the network may look at beforehand; its sequences are the split's.
        split: The training sequences, and the validation events that choose the epoch.
        max_length: Longest window.
        plan: How to train.
        report: Called after every epoch, in the first process only.
        step: Called after every step with the share of the epoch that is done.
        progress_file: Where every validated epoch is saved, so that a killed training can be resumed.
        resume: Go on from `progress_file` if it is there.

    Returns:
        The best epoch and the history.

    Raises:
        DataError: No training sequence has two events, the loss stopped being a number, or the saved progress is of
            another training.
    """
    began = time.monotonic()
    network.prepare(data)
    judge = _Judge(network, data, split, max_length)
    if isinstance(network, FittedNetwork):
        network.eval()
        return Outcome(0, judge.validation(), time.monotonic() - began, ())
    if not isinstance(network, LearnedNetwork):
        raise TypeError(f"{type(network).__name__} is neither learned nor fitted")
    if not any(len(sequence) >= 2 for sequence in split.train):
        raise DataError("no user has two events or more to train on, held-out ones not counted. Use more data")
    return _Training(network, data, split, max_length, plan, judge, report, step, progress_file).run(resume)


class _Training:
    """One training of a `LearnedNetwork`."""

    def __init__(
        self,
        network: LearnedNetwork,
        data: TrainingData,
        split: Split,
        max_length: int,
        plan: TrainingPlan,
        judge: "_Judge",
        report: Callable[[EpochReport], None],
        step: Callable[[float], None],
        progress_file: Path | None,
    ) -> None:
        self._network = network
        self._data = data
        self._split = split
        self._max_length = max_length
        self._plan = plan
        self._judge = judge
        self._report = report
        self._show_step = step
        self._progress_file = progress_file
        self._workers = Workers.join()
        self._device = next(network.parameters()).device
        self._regulariser = Regulariser(network, data, plan.diversity, plan.adversarial)
        shares = [(network.rate_share(name), parameter) for name, parameter in network.named_parameters()]
        shares += [(1.0, parameter) for parameter in self._regulariser.parameters()]
        groups: dict[float, list[Tensor]] = defaultdict(list)
        for share, parameter in shares:
            if parameter.requires_grad:
                groups[share].append(parameter)
        self._parameters = [parameter for group in groups.values() for parameter in group]
        self._average = ParameterAverage([p for p in network.parameters() if p.requires_grad], plan.averaging)
        self._optimizer = torch.optim.AdamW(
            [{"params": group, "share": share} for share, group in groups.items()],
            lr=plan.learning_rate,
            betas=_BETAS,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        tokens = sum(len(sequence) for sequence in split.train)
        self._steps = max(1, math.ceil(tokens / plan.batch_tokens / self._workers.count)) * plan.epochs
        # A training of a few hundred steps would spend them all warming up.
        self._warmup = min(plan.warmup_steps, self._steps // 20)
        self._taken = 0
        self._history: list[EpochReport] = []
        self._best: EpochReport | None = None
        self._best_parameters: dict[str, Tensor] = {}

    def run(self, resume: bool) -> Outcome:
        if resume and self._progress_file is not None and self._progress_file.exists():
            self._restore(read_progress(self._progress_file))
        before = self._history[-1].seconds if self._history else 0.0
        began = time.monotonic()
        for epoch in range(len(self._history) + 1, self._plan.epochs + 1):
            if self._is_over():
                break
            loss, tokens_per_second = self._learn(epoch)
            validated = epoch % self._plan.validate_every == 0 or epoch == self._plan.epochs
            self._network.eval()
            validation, training, better = self._validate(epoch) if validated else (None, None, False)
            report = EpochReport(
                epoch,
                before + time.monotonic() - began,
                tokens_per_second,
                self._rate() * self._plan.learning_rate,
                loss,
                training,
                validation,
                better,
            )
            self._history.append(report)
            if better:
                self._best = report
            if self._workers.is_first:
                self._report(report)
                if validated and self._progress_file is not None:
                    write_progress(self._progress_file, self._progress())
        if self._best is None or self._best.validation is None:
            raise DataError(f"nothing was trained: epochs must be at least 1, not {self._plan.epochs}")
        self._network.load_state_dict(self._best_parameters)
        self._network.eval()
        self._network.refresh()
        return Outcome(self._best.epoch, self._best.validation, self._history[-1].seconds, tuple(self._history))

    def _validate(self, epoch: int) -> tuple[dict[str, float], dict[str, float] | None, bool]:
        """The averaged parameters on validation and, in the first process, on training events; kept if none were better."""
        with self._average.in_place():
            validation = self._workers.agree(self._judge.validation() if self._workers.is_first else {})
            if not math.isfinite(validation["loss"]):
                raise DataError(
                    f"the model's scores are no numbers any more after epoch {epoch}; lower --learning-rate"
                )
            better = self._best is None or validation["ndcg@10"] > (self._best.validation or {})["ndcg@10"]
            if better:
                self._best_parameters = copy.deepcopy(self._network.state_dict())
            return validation, self._judge.training() if self._workers.is_first else None, better

    def _is_over(self) -> bool:
        validated = [report for report in self._history if report.validation is not None]
        since = next((n for n, report in enumerate(reversed(validated)) if report.best), 0)
        return since >= self._plan.patience

    def _learn(self, epoch: int) -> tuple[float, float]:
        """One pass over the data: the mean loss, and events a second."""
        # Seeded for every epoch alone, so that a resumed training needs no random state from before.
        torch.manual_seed(self._plan.seed * 100_003 + epoch)
        rng = np.random.default_rng([self._plan.seed, epoch])
        segments = training_segments(self._split.train, self._max_length, rng)
        batches = self._workers.share(batches_of(segments, self._plan.batch_tokens, rng))
        self._network.train()
        autocast = (
            torch.autocast(self._device.type, torch.bfloat16) if self._plan.precision == "bf16" else nullcontext()
        )
        total, count, tokens, began = 0.0, 0, 0, time.monotonic()
        inputs = batch_inputs(batches, self._data.vocabulary, self._data.types, self._max_length)
        for place, batch in enumerate(inputs, start=1):
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate() * self._plan.learning_rate * group["share"]
            with autocast:
                loss = self._network.loss(self._batch(batch))
                value = loss.value + self._regulariser(loss)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            self._workers.average_gradients(self._parameters)
            torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
            self._optimizer.step()
            self._taken += 1
            self._average.update(self._taken)
            total += loss.value.item() * loss.targets
            count += loss.targets
            tokens += int(batch.lengths.sum())
            self._show_step(place / len(batches))
        if not math.isfinite(total):
            raise DataError(f"the loss is no number any more in epoch {epoch}; lower --learning-rate")
        if not count:
            raise DataError("no training event has a known item before it; nothing can be learned from this data")
        return total / count, tokens / (time.monotonic() - began)

    def _rate(self) -> float:
        """The learning rate as a share of its peak."""
        if self._taken < self._warmup:
            return (self._taken + 1) / self._warmup
        done = min(1.0, (self._taken - self._warmup) / max(1, self._steps - self._warmup))
        return _FINAL_RATE + (1.0 - _FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))

    def _batch(self, inputs: WindowInputs) -> Batch:
        items, types, ages, lengths = tensors_of(inputs, self._device)
        return Batch(items, types, ages, lengths, min(1.0, self._taken / self._steps))

    def _progress(self) -> Progress:
        return Progress(
            plan=self._plan,
            taken=self._taken,
            history=self._history,
            parameters=self._network.state_dict(),
            averages=self._average.averages,
            best_parameters=self._best_parameters,
            regulariser=self._regulariser.state_dict(),
            optimizer=self._optimizer.state_dict()["state"],
        )

    def _restore(self, progress: Progress) -> None:
        if progress.plan != self._plan:
            raise DataError(
                f"{self._progress_file} is the progress of another training: its options were {progress.plan}. "
                "Give the same options, or leave out --resume to start anew"
            )
        try:
            self._network.load_state_dict(progress.parameters)
            self._regulariser.load_state_dict(progress.regulariser)
            self._average.restore(progress.averages)
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{self._progress_file} is the progress of another network: {error}. "
                "Give the same options, or leave out --resume to start anew"
            ) from error
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": progress.optimizer, "param_groups": groups})
        self._taken = progress.taken
        self._history = list(progress.history)
        self._best = next((report for report in reversed(self._history) if report.best), None)
        self._best_parameters = progress.best_parameters


class _Judge:
    """The network on held-out events, and on events that it has learned from."""

    def __init__(self, network: Network, data: TrainingData, split: Split, max_length: int) -> None:
        self._network = network
        self._data = data
        self._validation = split.validation
        learned = [sequence for sequence in split.train if len(sequence) >= 2]
        sample = learned[:: max(1, len(learned) // _JUDGED_IN_TRAINING)]
        self._training = Judged(tuple(s.part(0, len(s) - 1) for s in sample), tuple(s.items[-1] for s in sample))
        self._max_length = max_length

    def validation(self) -> dict[str, float]:
        self._network.refresh()
        return self._figures(self._validation)

    def training(self) -> dict[str, float]:
        """After `validation`, which refreshes."""
        return self._figures(self._training)

    def _figures(self, judged: Judged) -> dict[str, float]:
        return evaluate_network(self._network, judged, self._data.vocabulary, self._data.types, self._max_length)


def evaluate_network(
    network: Network, judged: Judged, vocabulary: Vocabulary, types: Sequence[str], max_length: int
) -> dict[str, float]:
    """The figures of `evaluate_encoder` for a network as it is served: one with a scorer orders its candidates by it."""
    scorer = network if isinstance(network, ScoringNetwork) else None
    return evaluate_encoder(
        encoder_of(network),
        item_vectors_of(network),
        judged,
        vocabulary,
        types,
        max_length,
        score=score_of(scorer) if scorer else None,
        candidates=scorer.candidates if scorer else 0,
    )
