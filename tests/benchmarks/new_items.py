"""What texts are worth for items that nobody has touched, and what tuning the language model is worth.

    python -m tests.benchmarks.new_items ml-1m --data ../shared/data [--users 1000] [--epochs 5] [--threads 2]
    python -m tests.benchmarks.new_items ml-1m --data ../shared/data --only text,text/lora,text/full --out texts.md

A tenth of the items is held out of training entirely (`models.data.splits.hold_out_items`). Every user's last event of
such an item is a target, given the user's events of other items before it. It is ranked among all unseen items, and among
the held-out ones alone. The rest of the log is split leave-one-out: its validation events choose the epoch, its test
events say how good the model is for items that it knows.

Beside the models stand chance, popularity (which has no count of a held-out item: it comes after all that has one, and
among its like by chance), and popularity as it will turn out, which knows what nobody can know yet: the held-out items'
counts in the whole log.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from models.data.events import UserSequence, item_counts, user_sequences
from models.data.readers import read_events, read_items
from models.data.splits import HeldOutItems, Judged, hold_out_items, leave_one_out
from models.errors import DriftlineError
from models.evaluation.leave_one_out import evaluate_encoder
from models.evaluation.metrics import bootstrap_intervals, gain_table, target_ranks
from models.networks import build_network, find_family
from models.networks.functions import encoder_of, item_vectors_of
from models.networks.network import TrainingData
from models.spec import IntArray, ItemMetadata, Vectors
from models.training.devices import choose_device, choose_precision
from models.training.plan import TrainingPlan
from models.training.train import train_network
from models.vocabulary import Vocabulary
from models.windows import window_inputs
from tests.benchmarks.families import DATA_SETS

_K: Final = 10
_BATCH: Final = 256
_SEED: Final = 7
_DEFAULT: Final = "text,text/lora,text/full,text+mf,text+id"
_HEAD: Final = (
    "| model | numbers trained | minutes | known items, NDCG@10 | held-out among all, HR@10 | NDCG@10 "
    "| among held-out, HR@10 | NDCG@10 |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Task:
    """What every model is given, and judged by.

    Attributes:
        held_out: The items held out, and who went on to one of them.
        vocabulary: All items.
        types: Event type names.
        metadata: Titles and topics.
        window: Longest window.
        counts: Events of each item in the whole log, those of held-out items too.
    """

    held_out: HeldOutItems
    vocabulary: Vocabulary
    types: tuple[str, ...]
    metadata: dict[str, ItemMetadata]
    window: int
    counts: dict[str, int]

    def rows(self, ids: Sequence[str]) -> IntArray:
        """The items' rows."""
        return np.array([self.vocabulary.rows[item_id] for item_id in ids], np.int64)


@dataclass(frozen=True, slots=True)
class Found:
    """Ranks of held-out targets, shape (n,): among all unseen items, and among the held-out ones."""

    among_all: IntArray
    among_held_out: IntArray

    def cells(self) -> str:
        """HR@10 and NDCG@10 of both, with 95 % intervals over users."""
        cells = []
        for ranks in (self.among_all, self.among_held_out):
            intervals = bootstrap_intervals(gain_table(ranks, (_K,)), np.arange(len(ranks)))
            cells += [
                f"{interval.mean:.4f} ({interval.low:.4f}–{interval.high:.4f})"
                for interval in (intervals[f"hr@{_K}"], intervals[f"ndcg@{_K}"])
            ]
        return " | ".join(cells)


def find(task: Task, judged: Judged, vectors: Vectors, item_vectors: Vectors) -> Found:
    """Where the held-out targets come.

    Args:
        vectors: Of the users, shape (n, dim).
        item_vectors: Shape (items + 1, dim).
    """
    known = np.setdiff1d(np.arange(1, len(task.vocabulary) + 1), task.rows(task.held_out.items))
    parts = []
    for start in range(0, len(vectors), _BATCH):
        part = slice(start, start + _BATCH)
        scores = vectors[part] @ item_vectors.T
        targets = task.rows(judged.targets[part])
        seen = [task.rows(context.items) for context in judged.contexts[part]]
        parts.append((target_ranks(scores, targets, seen), target_ranks(scores, targets, [known] * len(targets))))
    return Found(*(np.concatenate(ranks) for ranks in zip(*parts, strict=True)))


def train_and_judge(
    task: Task, name: str, plan: dict[str, int], settings: dict[str, object], device: torch.device
) -> str:
    """Train one model: its line of the table. After a slash `name` says how the language model is tuned."""
    family_name, _, tuning = name.partition("/")
    family = find_family(family_name)
    split = leave_one_out(task.held_out.sequences)
    torch.manual_seed(_SEED)
    shape = {"items": len(task.vocabulary), "types": len(task.types), "max_length": task.window}
    network = build_network(family_name, {**shape, **settings, **({"tuning": tuning} if tuning else {})}).to(device)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    defaults = family.training
    began = time.monotonic()
    train_network(
        network,
        TrainingData(split.train, task.vocabulary, task.types, task.metadata),
        split,
        task.window,
        TrainingPlan(
            seed=_SEED,
            epochs=plan.get("epochs", defaults.epochs),
            learning_rate=defaults.learning_rate,
            batch_tokens=plan.get("batch_tokens", defaults.batch_tokens),
            weight_decay=defaults.weight_decay,
            patience=plan.get("epochs", defaults.epochs),
            precision=choose_precision("auto", device),
        ),
        report=lambda epoch: print(
            f"  {name}, epoch {epoch.epoch}: {epoch.seconds:.0f} s, loss {epoch.loss:.4f}", file=sys.stderr, flush=True
        ),
    )
    minutes = (time.monotonic() - began) / 60
    encode, table, judged = encoder_of(network), item_vectors_of(network), task.held_out.judged
    known = evaluate_encoder(encode, table, split.test, task.vocabulary, task.types, task.window)["ndcg@10"]
    vectors = [
        encode(window_inputs(judged.contexts[start : start + _BATCH], task.vocabulary, task.types, task.window))
        for start in range(0, len(judged.targets), _BATCH)
    ]
    found = find(task, judged, np.concatenate(vectors), table)
    return f"| {name} | {trained:,} | {minutes:.1f} | {known:.4f} | {found.cells()} |"


def baselines(task: Task) -> list[str]:
    """The lines of chance and popularity."""
    judged = task.held_out.judged
    known = leave_one_out(task.held_out.sequences)
    counts = item_counts(known.train)
    alike = np.ones((len(judged.targets), 1), np.float32)
    rng = np.random.default_rng(_SEED)
    # Among items of one count chance decides.
    ties = rng.random(len(task.vocabulary) + 1)

    def line(name: str, popularity: dict[str, int]) -> str:
        table = np.array([0.0, *(popularity.get(item_id, 0) for item_id in task.vocabulary.ids[1:])]) + ties * 0.5
        users = np.ones((len(known.test.targets), 1), np.float32)
        column = table[:, None].astype(np.float32)
        scores = evaluate_encoder(
            lambda inputs: users[: len(inputs.lengths)], column, known.test, task.vocabulary, task.types, task.window
        )
        return f"| {name} | 0 | 0.0 | {scores['ndcg@10']:.4f} | {find(task, judged, alike, column).cells()} |"

    candidates = len(task.vocabulary) - float(np.mean([len(set(c.items)) for c in judged.contexts]))
    gain = float((1.0 / np.log2(1.0 + np.arange(1, _K + 1))).sum())
    chance = " | ".join(f"{_K / n:.4f} | {gain / n:.4f}" for n in (candidates, len(task.held_out.items)))
    return [
        f"| chance | 0 | 0.0 | {gain / candidates:.4f} | {chance} |",
        line("popularity", counts),
        line("popularity as it will turn out", task.counts),
    ]


def read_task(data_set: str, directory: Path, users: int | None, window: int | None, share: float) -> Task:
    """The task of a data set; of its users every n-th, so that about `users` are left."""
    source = DATA_SETS[data_set]
    sequences: list[UserSequence] = user_sequences(read_events(str(directory / source.log)).events)
    if users is not None:
        sequences = sequences[:: max(1, len(sequences) // users)]
    item_map = None if source.item_map is None else directory / source.item_map
    metadata = read_items(directory / source.metadata, item_map=item_map)
    counts = item_counts(sequences)
    return Task(
        held_out=hold_out_items(sequences, share, _SEED),
        vocabulary=Vocabulary(sorted(counts)),
        types=tuple(sorted({kind for sequence in sequences for kind in sequence.types})),
        metadata=metadata,
        window=window or source.window,
        counts=counts,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=sorted(DATA_SETS))
    parser.add_argument("--data", type=Path, required=True, help="the directory of the data set's files")
    parser.add_argument("--only", default=_DEFAULT, help=f"models, with commas between; {_DEFAULT} unless given")
    parser.add_argument("--share", type=float, default=0.1, help="of the items to hold out")
    parser.add_argument("--users", type=int, help="about so many users; all unless given")
    parser.add_argument("--window", type=int, help="longest window; the data set's unless given")
    parser.add_argument("--epochs", type=int, help="passes over the data; the family's unless given")
    parser.add_argument("--batch-tokens", type=int, help="events a batch; the family's unless given")
    parser.add_argument("--encoded-items", type=int, default=64, help="items a step that a tuned model encodes")
    parser.add_argument("--dim", type=int, default=128, help="length of a vector")
    parser.add_argument("--text-model", default="minilm", help="the language model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = choose_device(chosen.device)
    task = read_task(chosen.data_set, chosen.data, chosen.users, chosen.window, chosen.share)
    lines = [
        (
            f"{len(task.held_out.sequences):,} users, {len(task.vocabulary):,} items, {len(task.held_out.items):,} of them "
            f"held out, {len(task.held_out.judged.targets):,} targets; 95 % intervals over users."
        ),
        "",
        *_HEAD.splitlines(),
        *baselines(task),
    ]
    print("\n".join(lines), flush=True)
    plan = {"epochs": chosen.epochs, "batch_tokens": chosen.batch_tokens}
    settings = {"dim": chosen.dim, "text_model": chosen.text_model, "encoded_items": chosen.encoded_items}
    for name in chosen.only.split(","):
        given = {option: value for option, value in plan.items() if value is not None}
        line = train_and_judge(task, name, given, settings if name.startswith("text") else {"dim": chosen.dim}, device)
        print(line, flush=True)
        lines.append(line)
    if chosen.out is not None:
        chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DriftlineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
