"""Faults without end, done to the real thing, and an oracle that knows what must come out all the same.

    make faults                                       100 kills, and what else comes with them
    make faults ARGS="--kills 1000 --seed 7"
    make faults ARGS="--seed 12 --rounds 1"           one round again
    make faults ARGS="--only redis-failed-over-behind --rounds 3"

Three brokers (each topic in three copies, two of which must have a write), a Redis with a replica, ingest and evolve
processes under a supervisor, and events that keep coming. Each round has topics, groups and a Redis of its own, and a seed;
its faults (`faults.py`) are drawn by that seed. When nothing moves any more, everything that was written is compared with
what plain sequential Python makes of the same events (`tests/integration/oracle.py`), and so is what was seen of Redis all
the while (`watcher.py`).

A failed round ends the campaign: it prints its seed, what was done and when, and how to do the same again. What is drawn is
the same again; when exactly it happens is up to the machine. The last line is the verdict; the exit status is 1 when
anything is not as it must be.
"""

import json
import random
import signal
import sys
import tempfile
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streams.observe.logs import configure_logging
from tests.faults import mutants
from tests.faults.campaign import Report, run_round, schedule, write_bundles
from tests.faults.faults import FAULTS
from tests.faults.stack import cluster_in

_KILLS: Final = 100


class OutputFormat(StrEnum):
    """How the outcome is printed."""

    TEXT = "text"
    JSON = "json"


def main(
    kills: Annotated[int, typer.Option(min=1, help="Go on until so many workers were killed.")] = _KILLS,
    rounds: Annotated[int | None, typer.Option(min=1, help="Or for so many rounds, however many are killed.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first round; the following ones count on. Random if none.")
    ] = (None),
    only: Annotated[
        list[str] | None, typer.Option(help=f"Only this fault; several times: {', '.join(FAULTS)}.")
    ] = None,
    mutant: Annotated[
        str | None, typer.Option(help=f"Break the engine on purpose, to see it found: {', '.join(mutants.MUTANTS)}.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep every log in this new folder.")] = None,
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", help="How to print the outcome.")
    ] = OutputFormat.TEXT,
) -> None:
    """Kill, freeze, cut, fill and empty whatever there is, and check that no event is lost and none counts twice."""
    for unknown in set(only or ()) - set(FAULTS):
        raise typer.BadParameter(f"there is no fault {unknown}; there are {', '.join(FAULTS)}", param_hint="--only")
    if mutant is not None and mutant not in mutants.MUTANTS:
        raise typer.BadParameter(
            f"there is no mutant {mutant}; there are {', '.join(mutants.MUTANTS)}", param_hint="--mutant"
        )
    # Standard output is for the outcome; logs go beside it.
    configure_logging("console", "error", "faults")
    # As Ctrl-C: what was started is ended, and what was done is told.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = Report(random.SystemRandom().randrange(10**6) if seed is None else seed)
    if keep is not None:
        keep.mkdir(parents=True)
        _run(report, keep, kills, rounds, only or [], mutant)
    else:
        with tempfile.TemporaryDirectory(prefix="driftline-faults-") as directory:
            _run(report, Path(directory), kills, rounds, only or [], mutant)
    _print(report, only or [], mutant, output)
    sys.exit(0 if report.violation is None else 1)


def _run(report: Report, directory: Path, kills: int, rounds: int | None, only: list[str], mutant: str | None) -> None:
    commands = {} if mutant is None else mutants.commands(mutant)
    bundle, model = write_bundles(directory)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting Kafka", total=kills if rounds is None else rounds)
        with cluster_in(directory / "kafka") as cluster:
            while report.violation is None and (report.kills < kills if rounds is None else report.rounds < rounds):
                number = report.seed + report.rounds

                def say(what: str, number: int = number) -> None:
                    told = f"seed {number}, after {report.kills:,} kills: {what}"
                    progress.update(task, description=told)
                    if not console.is_terminal:
                        console.print(told, highlight=False)

                faults = schedule(number, only)
                run_round(
                    report, directory / f"round-{number}", cluster, bundle, model, number, faults,
                    commands=commands, say=say,
                )  # fmt: skip
                progress.update(task, completed=report.kills if rounds is None else report.rounds)


def _print(report: Report, only: list[str], mutant: str | None, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        found: dict[str, Any] = asdict(report)
        found["recovery_p50_s"], found["recovery_p99_s"] = report.recovery_s(50), report.recovery_s(99)
        found["history"] = [{"at_s": round(entry.at_s, 1), "what": entry.what} for entry in report.history]
        print(json.dumps({"verdict": report.verdict, **found}, indent=2))
        return
    print("faults:", ", ".join(f"{count} {name}" for name, count in report.faults.most_common()))
    print(
        f"of {report.events:,} events {report.applied:,} applied, {report.repeats:,} repeats, {report.late:,} late, "
        f"{report.bad:,} bad; sent again and dropped: {report.resent_events:,}; recommendations sent again under the same "
        f"id: {report.resent_recommendations:,}"
    )
    if report.violation is not None:
        flags = "".join(f" --only {name}" for name in only) + (f" --mutant {mutant}" if mutant else "")
        print(f"\n{report.log}\n\nwhat was done (seed {report.failed_seed}):")
        for entry in report.history:
            print(f"  {entry.at_s:7.1f} s  {entry.what}")
        print(f"\n{report.violation}\n")
        print(f'The same round again: make faults ARGS="--seed {report.failed_seed} --rounds 1{flags}"')
    print(report.verdict)


if __name__ == "__main__":
    typer.run(main)
