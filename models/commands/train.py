"""`driftline train`. Importable without torch: the command line lists it where only serving is installed."""

import hashlib
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from models.commands.results import Output, print_result
from models.commands.source import SYNTHETIC, SplitName, read_log, split_log
from models.data.events import LoggedEvent, item_counts, user_sequences
from models.data.readers import LogFormat, read_items
from models.errors import DataError, MissingExtra
from models.spec import CONFIG_FORMAT, MAX_POPULAR, ItemMetadata, ModelConfig, WindowRule
from models.synthetic import CATALOGUE, LogPlan
from models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from models.networks.network import Family
    from models.training.plan import EpochReport

_PROGRESS = "training.safetensors"


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionName(StrEnum):
    """What matrix products are computed in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def train(
    out: Annotated[Path, typer.Option(help="Directory for the checkpoint, the history and the curves.")],
    model: Annotated[str, typer.Option(help="Which family; `driftline models` lists them.")] = "sasrec",
    data: Annotated[
        str, typer.Option(help="'synthetic', or a log: JSON lines, Parquet, or a benchmark file.")
    ] = SYNTHETIC,
    data_format: Annotated[LogFormat, typer.Option(help="How the log is written.")] = LogFormat.AUTO,
    min_rating: Annotated[float | None, typer.Option(help="Of ratings, only those of at least this.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Synthetic data: visitors.")] = 3_000,
    events: Annotated[int, typer.Option(min=3, help="Synthetic data: events a visitor.")] = 48,
    drift: Annotated[float, typer.Option(min=0, max=1, help="Synthetic data: how strongly interests drift.")] = 0.5,
    metadata: Annotated[
        Path | None, typer.Option(help="Titles and topics: our JSON, MovieLens movies.dat or .csv, RecBole .item.")
    ] = None,
    item_map: Annotated[
        Path | None, typer.Option(help="Lines `item id`: which id of the metadata an item of the log has.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="How events are held out to judge.")] = SplitName.leave_one_out,
    name: Annotated[str | None, typer.Option(help="The model's name; the family's unless given.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the network, NAME=VALUE; may be repeated. See `driftline models`."),
    ] = None,
    window_max: Annotated[int, typer.Option(min=1, help="Most events in a window.")] = 50,
    window_keep: Annotated[
        int | None, typer.Option(min=1, help="Events kept when a window is cut; all unless given: it slides.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes data, parameters and order.")] = 7,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; the family's unless given.")] = None,
    patience: Annotated[int, typer.Option(min=1, help="Validations without a better NDCG@10 before stopping.")] = 5,
    validate_every: Annotated[int, typer.Option(min=1, help="Epochs between validations.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate; the family's unless given.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="AdamW's; the family's unless given.")] = None,
    averaging: Annotated[
        float,
        typer.Option(min=0, max=0.999999, help="Decay of the parameters' average that is kept; 0: the last step's."),
    ] = 0.999,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Events a batch; the family's unless given.")] = None,
    diversity: Annotated[
        float, typer.Option(min=0, help="Weight of the diversity regulariser: exposure spread over more items.")
    ] = 0.0,
    adversarial: Annotated[
        float, typer.Option(min=0, help="Weight of the adversary that finds popularity in item vectors.")
    ] = 0.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads. The seed fixes the result for one number.")] = 1,
    device: Annotated[Device, typer.Option(help="Where to train; auto takes CUDA where it is.")] = Device.auto,
    precision: Annotated[
        PrecisionName, typer.Option(help="auto takes bf16 where the device computes it fast.")
    ] = PrecisionName.auto,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    output: Annotated[Output, typer.Option(help="How to print the result.")] = Output.table,
) -> None:
    """Train a model on a log and write a checkpoint.

    Leave-one-out: of every user the last event is held out to test, the one before to choose the best epoch.
    Run by `torchrun`, every process takes its share.
    """
    try:
        import torch

        from models.checkpoint import Checkpoint, TrainedModel, write_checkpoint
        from models.evaluation.leave_one_out import evaluate_popularity
        from models.networks import NAMES, build_network, find_family
        from models.networks.functions import item_vectors_of, parameter_count
        from models.networks.network import LearnedNetwork, TrainingData
        from models.training.devices import choose_device, choose_precision
        from models.training.distributed import Workers
        from models.training.history import write_history
        from models.training.plan import TrainingPlan
        from models.training.train import evaluate_network, train_network

        if model not in NAMES:
            raise DataError(f"there is no model {model!r}. Choose one of: {', '.join(NAMES)}")
        family = find_family(model)
    except ModuleNotFoundError as error:
        raise MissingExtra("train", error.name or "torch") from error

    keep = window_max if window_keep is None else window_keep
    if keep > window_max:
        raise DataError(f"--window-keep {keep} is larger than --window-max {window_max}; keep at most that many")
    torch.set_num_threads(threads)

    shown = read_items(metadata, item_map=item_map) if metadata else (CATALOGUE if data == SYNTHETIC else {})
    log = read_log(data, data_format, min_rating, LogPlan(users=users, events=events, drift=drift, seed=seed))
    sequences = user_sequences(log.events)
    held_out = split_log(sequences, split, timed=log.timed)
    # Items that only the metadata has are known too: a model of texts recommends them before their first event.
    vocabulary = Vocabulary(
        sorted({event.item_id for event in log.events} | (shown.keys() if shown is not CATALOGUE else set()))
    )
    types = tuple(sorted({event.type for event in log.events}))
    counts = item_counts(held_out.train)

    network_config = _network_config(family, settings or [], len(vocabulary), len(types), window_max)
    place = choose_device(device.value)
    torch.manual_seed(seed)
    network = build_network(model, network_config).to(place)
    plan = TrainingPlan(
        seed=seed,
        epochs=epochs or family.training.epochs,
        learning_rate=family.training.learning_rate if learning_rate is None else learning_rate,
        weight_decay=family.training.weight_decay if weight_decay is None else weight_decay,
        averaging=averaging,
        batch_tokens=batch_tokens or family.training.batch_tokens,
        patience=patience,
        validate_every=validate_every,
        precision=choose_precision(precision.value, place),
        diversity=diversity,
        adversarial=adversarial,
    )
    seen = TrainingData(held_out.train, vocabulary, types, shown)
    first = Workers.join().is_first
    with _ProgressBar(plan.epochs, shown=first and isinstance(network, LearnedNetwork)) as bar:
        outcome = train_network(
            network,
            seen,
            held_out,
            window_max,
            plan,
            report=bar.report,
            step=bar.step,
            progress_file=out / _PROGRESS,
            resume=resume,
        )
    if not first:
        return

    item_vectors = item_vectors_of(network)
    metrics = {
        **evaluate_network(network, held_out.test, vocabulary, types, window_max),
        **evaluate_popularity(counts, held_out.test, vocabulary),
        **{f"validation_{figure}": value for figure, value in outcome.validation.items()},
        "best_epoch": float(outcome.best_epoch),
        "held_out_users": float(len(held_out.test.targets)),
        "parameters": float(parameter_count(network)),
        "training_seconds": outcome.seconds,
    }
    source: list[str | int | float | Path] = ["--data", data, "--split", split.value]
    if data == SYNTHETIC:
        source += ["--users", users, "--events", events, "--drift", drift]
    elif data_format is not LogFormat.AUTO:
        source += ["--data-format", data_format.value]
    for option, value in (("--min-rating", min_rating), ("--metadata", metadata), ("--item-map", item_map)):
        if value is not None:
            source += [option, value]
    for setting in settings or []:
        source += ["--set", setting]
    command = _command_line(
        *("train", "--model", model, *source, "--name", name or model, "--seed", seed, "--epochs", plan.epochs),
        *("--patience", patience, "--validate-every", validate_every, "--learning-rate", plan.learning_rate),
        *("--weight-decay", plan.weight_decay, "--averaging", averaging, "--batch-tokens", plan.batch_tokens),
        *("--diversity", diversity, "--adversarial", adversarial),
        *("--window-max", window_max, "--window-keep", keep, "--threads", threads),
        *("--device", place.type, "--precision", plan.precision, "--out", out),
    )
    config = ModelConfig(
        format=CONFIG_FORMAT,
        name=name or model,
        version="",
        dim=item_vectors.shape[1],
        window=WindowRule(max=window_max, keep=keep),
        types=types,
        popular=tuple(counts)[:MAX_POPULAR],
    )
    checkpoint = Checkpoint(
        format=1,
        network=model,
        network_config=network_config,
        config=config,
        command=command,
        data_sha256=_fingerprint(log.events),
        metrics=metrics,
    )
    titles = {item_id: shown.get(item_id, ItemMetadata(title=item_id)) for item_id in vocabulary.ids[1:]}
    write_checkpoint(out, TrainedModel(checkpoint, network, vocabulary, titles))
    if outcome.history:
        write_history(out, outcome.history)
    (out / _PROGRESS).unlink(missing_ok=True)
    print_result({"checkpoint": str(out), "items": len(vocabulary), "users": len(sequences), **metrics}, output)


class _ProgressBar:
    """Epochs and steps on standard error, with a line for every epoch."""

    def __init__(self, epochs: int, *, shown: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, console=self._console, disable=not shown)
        self._epochs: TaskID = self._progress.add_task("epochs", total=epochs, figures="")
        self._steps: TaskID = self._progress.add_task("this epoch, %", total=100, figures="")

    def __enter__(self) -> "_ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, share: float) -> None:
        self._progress.update(self._steps, completed=round(100 * share))

    def report(self, report: "EpochReport") -> None:
        figures = f"{report.tokens_per_second:,.0f} tokens/s  loss {report.loss:.4f}"
        for name, judged in (("learned", report.training), ("validation", report.validation)):
            if judged is not None:
                figures += f"  {name}: " + " ".join(
                    f"{figure} {judged[figure]:.4f}" for figure in _SHOWN if figure in judged
                )
        self._progress.update(self._epochs, completed=report.epoch, figures="")
        self._progress.console.print(f"epoch {report.epoch:3}  {figures}{'  (best)' if report.best else ''}")


_SHOWN = ("loss", "hr@10", "ndcg@10")


def _network_config(
    family: "Family", settings: Sequence[str], items: int, types: int, max_length: int
) -> dict[str, object]:
    """The network's whole configuration, defaults spelled out, as the checkpoint records it."""
    given: dict[str, object] = {"items": items, "types": types, "max_length": max_length}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals or field in given:
            raise DataError(f"--set {setting} is not NAME=VALUE of a setting not yet given; try --set dim=64")
        given[field] = value
    try:
        # Not strict: on a command line everything is a string.
        config = msgspec.convert(given, family.config, strict=False)
    except msgspec.ValidationError as error:
        known = [field.name for field in msgspec.structs.fields(family.config) if not field.required]
        raise DataError(
            f"--set {' '.join(settings)}: {error}. Settings of {family.name}: {', '.join(known) or 'none'}"
        ) from error
    built: dict[str, object] = msgspec.to_builtins(config)
    return built


def _fingerprint(log: Sequence[LoggedEvent]) -> str:
    """The SHA-256 of what was learned from, whatever file it came in."""
    digest = hashlib.sha256()
    for event in log:
        digest.update(f"{event.user_id}\t{event.item_id}\t{event.type}\t{event.time_ms}\n".encode())
    return digest.hexdigest()


def _command_line(*words: str | int | float | Path) -> str:
    return shlex.join(["driftline", *map(str, words)])
