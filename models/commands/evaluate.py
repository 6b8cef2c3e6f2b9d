"""`driftline evaluate`. Importable without torch and matplotlib."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models.commands.results import Output
from models.commands.source import SplitName, read_log, split_log
from models.data.events import UserSequence, item_counts, user_sequences
from models.data.readers import LogFormat
from models.errors import BundleError, DataError, MissingExtra
from models.evaluation.prequential import Seen
from models.synthetic import LogPlan

if TYPE_CHECKING:
    from models.evaluation.prequential import Replay
    from models.evaluation.recommender import Recommender
    from models.evaluation.report import EvaluationReport

# What `driftline train` generates unless told otherwise.
_SYNTHETIC_LOG = LogPlan(users=3_000, events=48, drift=0.5, seed=7)
_WIDTH_OF_A_PIPE = 200


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="A bundle, or a checkpoint; several with --compare.")],
    data: Annotated[
        str,
        typer.Option(
            help="A log: JSON lines, Parquet, or a benchmark file; 'synthetic' is what `driftline train` generates."
        ),
    ],
    data_format: Annotated[LogFormat, typer.Option(help="How the log is written.")] = LogFormat.AUTO,
    min_rating: Annotated[float | None, typer.Option(help="Of ratings, only those of at least this.")] = None,
    split: Annotated[SplitName, typer.Option(help="How events are held out to judge.")] = SplitName.leave_one_out,
    compare: Annotated[bool, typer.Option("--compare", help="One table of several models.")] = False,
    prequential: Annotated[
        bool, typer.Option("--prequential", help="Replay the log: predict every event before the model sees it.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            help="Replay: the first event to predict, ISO 8601 with offset or epoch milliseconds; "
            "the newest tenth unless given."
        ),
    ] = None,
    seen: Annotated[
        Seen, typer.Option(help="Replay: leave out what is in the window, as live serving does, or all ever touched.")
    ] = Seen.window,
    sample: Annotated[int | None, typer.Option(min=1, help="Replay: predict so many events, drawn at random.")] = None,
    freshness: Annotated[
        bool, typer.Option("--freshness", help="How accuracy falls when the newest events are hidden.")
    ] = False,
    diversity: Annotated[bool, typer.Option("--diversity", help="Diversity and popularity bias of the lists.")] = False,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Accuracy against diversity, for every way of re-ranking.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Fixes intervals and samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory for evaluation.md, evaluation.json and plots.")] = None,
    output: Annotated[Output, typer.Option(help="How to print the result.")] = Output.table,
) -> None:
    """Measure models on the events that training holds out: all items ranked, with intervals.

    As JSON: `models`, best first, each with `figures` ("ndcg@10": `mean`, `low`, `high`), `behind` the best, `size_bytes`
    and `users_per_second` of the encoder; `replay`, `freshness`, `diversity` and `frontier` where they were asked for.
    """
    from models.evaluation.comparison import compare_models
    from models.evaluation.diversity import measure_diversity
    from models.evaluation.freshness import HIDDEN, measure_freshness
    from models.evaluation.frontier import measure_frontier
    from models.evaluation.full_ranking import best_items, queries_of
    from models.evaluation.report import EvaluationReport

    if len(models) > 1 and not compare:
        raise DataError(f"{len(models)} models were given. Add --compare to compare them, or name one")
    if compare and (prequential or freshness or diversity or frontier):
        raise DataError(
            "--compare makes one table. Run --prequential, --freshness, --diversity, --frontier on one model"
        )
    if out is not None:
        _prepare(out)
    log = read_log(data, data_format, min_rating, _SYNTHETIC_LOG)
    if prequential and not log.timed:
        raise DataError(
            f"{data} has no times, so it cannot be replayed. Leave --prequential out, or use a log with times"
        )
    sequences = user_sequences(log.events)
    parts = split_log(sequences, split, timed=log.timed)
    judged, counts = parts.test, item_counts(parts.train)
    recommenders = [(str(path), _recommender(path)) for path in models]
    recommender = recommenders[0][1]
    users = len(judged.targets)

    with _progress("ranking", users * len(recommenders)) as advance:
        standings = compare_models(recommenders, judged, seed=seed, progress=advance)
    replay = _replay(recommender, sequences, start, seen, sample, seed) if prequential else None
    stale = diverse = points = None
    if freshness:
        with _progress("hiding events", users * len(HIDDEN)) as advance:
            stale = measure_freshness(recommender, judged, seed=seed, progress=advance)
    if diversity:
        with _progress("listing", users) as advance:
            pools = best_items(recommender, queries_of(judged), 10, advance)
        diverse = measure_diversity(recommender, pools.ranking.rows, pools.windows, counts)
    if frontier:
        with _progress("re-ranking", None) as advance:
            points = measure_frontier(recommender, judged, counts, seed=seed, progress=advance)
    report = EvaluationReport(
        data=data,
        split=split.value,
        users=users,
        models=standings,
        replay=replay,
        freshness=stale,
        diversity=diverse,
        frontier=points,
    )
    if out is not None:
        _write(report, out)
    _print(report, output)


def _recommender(path: Path) -> "Recommender":
    """A bundle, or a checkpoint, as something to evaluate."""
    from models.evaluation.onnx_runtime import read_recommender
    from models.evaluation.recommender import Recommender

    if not (path / "checkpoint.json").is_file():
        return read_recommender(path)
    try:
        import torch

        from models.checkpoint import read_checkpoint
        from models.networks.functions import encoder_of, item_vectors_of
        from models.networks.network import ScoringNetwork
    except ModuleNotFoundError as error:
        raise MissingExtra("train", error.name or "torch") from error

    torch.set_num_threads(1)
    model = read_checkpoint(path)
    config = model.checkpoint.config
    if isinstance(model.network, ScoringNetwork):
        raise BundleError(f"the checkpoint {path} has a scorer, which is evaluated as a bundle. Run `driftline export`")
    return Recommender(
        vocabulary=model.vocabulary,
        types=config.types,
        window=config.window,
        encode=encoder_of(model.network),
        item_vectors=item_vectors_of(model.network),
        name=config.name,
        version="checkpoint",
        popular=config.popular,
        metadata=model.metadata,
        size_bytes=(path / "model.safetensors").stat().st_size,
    )


def _replay(
    recommender: "Recommender",
    sequences: list[UserSequence],
    start: str | None,
    seen: Seen,
    sample: int | None,
    seed: int,
) -> "Replay":
    from models.evaluation.prequential import newest_tenth, replay_log

    start_ms = newest_tenth(sequences) if start is None else _milliseconds(start)
    events = sum(time >= start_ms for sequence in sequences for time in sequence.times)
    with _progress("replaying", min(events, sample or events)) as advance:
        return replay_log(
            recommender, sequences, start_ms=start_ms, seen=seen, sample=sample, seed=seed, progress=advance
        )


def _milliseconds(start: str) -> int:
    if start.lstrip("-").isdecimal():
        return int(start)
    try:
        time = datetime.fromisoformat(start)
    except ValueError as error:
        raise DataError(f"--start {start} is no time. Write ISO 8601 with an offset, or epoch milliseconds") from error
    if time.tzinfo is None:
        raise DataError(f"--start {start} has no offset. Write it as {start}Z for UTC")
    return round(time.timestamp() * 1_000)


@contextmanager
def _progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield advance


def _prepare(out: Path) -> None:
    """See before minutes of work that the report can be written."""
    if find_spec("matplotlib") is None:
        raise MissingExtra("train", "matplotlib")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the directory {out}: {error.strerror}. Choose another --out") from error


def _write(report: "EvaluationReport", out: Path) -> None:
    from models.evaluation.plots import write_plots
    from models.evaluation.report import markdown

    try:
        (out / "evaluation.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
        (out / "evaluation.md").write_text(markdown(report, pictures=True), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write into {out}: {error.strerror}. Check permissions and free space") from error
    write_plots(report, out)


def _print(report: "EvaluationReport", output: Output) -> None:
    from models.evaluation.report import report_tables

    if output is Output.json:
        typer.echo(msgspec.json.encode(report).decode())
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_PIPE)
    for table in report_tables(report):
        shown = Table(title=Text(table.title), title_justify="left")
        for place, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*map(Text, row))  # names of models are not markup of ours
        console.print(shown)
        console.print(Text(table.note, style="dim"))
        console.print()
