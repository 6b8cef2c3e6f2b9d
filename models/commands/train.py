"""`driftline train`. Importable without torch: the command line lists it where only serving is installed."""

import shlex
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from models.commands.results import Output, print_result
from models.data.events import item_counts, user_sequences
from models.data.readers import read_log
from models.data.splits import leave_one_out
from models.errors import DataError, MissingExtra
from models.spec import CONFIG_FORMAT, MAX_POPULAR, ItemMetadata, ModelConfig, WindowRule
from models.synthetic import CATALOGUE, LogPlan, generate_log
from models.vocabulary import Vocabulary

SYNTHETIC = "synthetic"


def train(
    out: Annotated[Path, typer.Option(help="Directory for the checkpoint.")],
    model: Annotated[str, typer.Option(help="Which network: sasrec.")] = "sasrec",
    data: Annotated[str, typer.Option(help="'synthetic', or a log: a file of JSON lines, each an event.")] = SYNTHETIC,
    users: Annotated[int, typer.Option(min=1, help="Synthetic data: visitors.")] = 3_000,
    events: Annotated[int, typer.Option(min=3, help="Synthetic data: events a visitor.")] = 48,
    drift: Annotated[float, typer.Option(min=0, max=1, help="Synthetic data: how strongly interests drift.")] = 0.5,
    metadata: Annotated[
        Path | None, typer.Option(help='Titles and topics: JSON, {"item id": {"title": ..., "topics": [...]}}.')
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; the network's unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes data, parameters and order.")] = 7,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data at most.")] = 30,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a better validation before stopping.")] = 5,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 4e-3,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Events a batch.")] = 3_200,
    dim: Annotated[int, typer.Option(min=1, help="Length of a vector.")] = 32,
    blocks: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 2,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 2,
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="Share of activations dropped.")] = 0.1,
    window_max: Annotated[int, typer.Option(min=1, help="Most events in a window.")] = 50,
    window_keep: Annotated[int, typer.Option(min=1, help="Events kept when a window is cut.")] = 25,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads. The seed fixes the result for one number.")] = 1,
    output: Annotated[Output, typer.Option(help="How to print the result.")] = Output.table,
) -> None:
    """Train a sequential recommender on a log and write a checkpoint.

    Of every user the last event is held out to test, the one before to choose the best epoch.
    """
    try:
        import torch

        from models.checkpoint import Checkpoint, TrainedModel, write_checkpoint
        from models.evaluation.leave_one_out import evaluate_encoder, evaluate_popularity
        from models.networks import NAMES, build_network
        from models.training.train import EpochReport, TrainingPlan, encoder_of, item_vectors_of, train_network
    except ModuleNotFoundError as error:
        raise MissingExtra("train", error.name or "torch") from error

    if model not in NAMES:
        raise DataError(f"there is no model {model!r}. Choose one of: {', '.join(NAMES)}")
    if window_keep > window_max:
        raise DataError(f"--window-keep {window_keep} is larger than --window-max {window_max}; keep at most that many")
    if dim % heads:
        raise DataError(f"--dim {dim} is no multiple of --heads {heads}; choose one that is")

    torch.set_num_threads(threads)
    console = Console(stderr=True)
    shown = _read_metadata(metadata) if metadata else (CATALOGUE if data == SYNTHETIC else {})
    if data == SYNTHETIC:
        log = list(generate_log(LogPlan(users=users, events=events, drift=drift, seed=seed)))
    else:
        log = read_log(data)
    sequences = user_sequences(log)
    split = leave_one_out(sequences)
    vocabulary = Vocabulary(sorted({event.item_id for event in log}))
    types = tuple(sorted({event.type for event in log}))
    counts = item_counts(split.train)

    network_config: dict[str, object] = {
        "items": len(vocabulary),
        "types": len(types),
        "max_length": window_max,
        "dim": dim,
        "blocks": blocks,
        "heads": heads,
        "dropout": dropout,
    }
    torch.manual_seed(seed)
    network = build_network(model, network_config)
    plan = TrainingPlan(
        seed=seed, epochs=epochs, learning_rate=learning_rate, batch_tokens=batch_tokens, patience=patience
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=epochs, figures="")

        def show(report: EpochReport) -> None:
            figures = f"loss {report.loss:.4f}  validation NDCG@10 {report.validation['ndcg@10']:.4f}"
            progress.update(task, advance=1, figures=figures + (" (best)" if report.best else ""))

        best = train_network(network, split, vocabulary, types, window_max, plan, show)

    metrics = {
        **evaluate_encoder(encoder_of(network), item_vectors_of(network), split.test, vocabulary, types, window_max),
        **evaluate_popularity(counts, split.test, vocabulary),
        "validation_hr@10": best.validation["hr@10"],
        "validation_ndcg@10": best.validation["ndcg@10"],
        "best_epoch": float(best.epoch),
        "held_out_users": float(len(split.test.targets)),
    }
    source: list[str | int | float | Path] = ["--data", data]
    if data == SYNTHETIC:
        source += ["--users", users, "--events", events, "--drift", drift]
    if metadata:
        source += ["--metadata", metadata]
    command = _command_line(
        *("train", "--model", model, *source, "--name", name or model, "--seed", seed, "--epochs", epochs),
        *("--patience", patience, "--learning-rate", learning_rate, "--batch-tokens", batch_tokens, "--dim", dim),
        *("--blocks", blocks, "--heads", heads, "--dropout", dropout, "--window-max", window_max),
        *("--window-keep", window_keep, "--threads", threads, "--out", out),
    )
    config = ModelConfig(
        format=CONFIG_FORMAT,
        name=name or model,
        version="",
        dim=dim,
        window=WindowRule(max=window_max, keep=window_keep),
        types=types,
        popular=tuple(counts)[:MAX_POPULAR],
    )
    checkpoint = Checkpoint(
        format=1, network=model, network_config=network_config, config=config, command=command, metrics=metrics
    )
    titles = {item_id: shown.get(item_id, ItemMetadata(title=item_id)) for item_id in vocabulary.ids[1:]}
    write_checkpoint(out, TrainedModel(checkpoint, network, vocabulary, titles))
    print_result({"checkpoint": str(out), "items": len(vocabulary), "users": len(sequences), **metrics}, output)


def _command_line(*words: str | int | float | Path) -> str:
    return shlex.join(["driftline", *map(str, words)])


def _read_metadata(path: Path) -> dict[str, ItemMetadata]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, ItemMetadata])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from error
    except msgspec.DecodeError as error:
        raise DataError(f'{path}: {error}. Expected {{"item id": {{"title": "...", "topics": ["..."]}}}}') from error
