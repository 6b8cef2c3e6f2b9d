"""Half an hour at 70 % of the top rate: does anything grow that must not?

    make soak                                         30 minutes
    make soak ARGS="--minutes 2 --out soak"

One ingest and one evolve on a real Kafka and a real Redis, 20,000 users with full windows. The top rate is measured first,
as `make bench` does, unless `--rate` gives the rate to run at. Then, all the while: the memory of each process and of
Redis's data, the events that wait, and how fresh vectors are, as a process beside it reads them from Redis. The figures go
to `soak.json` and, drawn, to `soak.png` in the folder that `--out` names.

Redis's data grow at first, in the rows alone: the windows that they begin with have ids as short as those of a new topic, and
each live event brings a longer one, until every window is of live events.

The last line is the verdict; the exit status is 1 when

- the memory of ingest, evolve or Redis grew, over the second half, by more than a twentieth and 10 MiB
- more than ten seconds' events waited at any moment, or more than one second's on average over the last quarter
- a process ended
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import psutil
import typer
from redis import Redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.local.process import ServerError
from export.pooling import write_pooling_bundle
from streams.errors import DriftlineError
from streams.observe.logs import configure_logging
from tests.benchmarks import live
from tests.benchmarks.rig import Assistant, BenchmarkFailed, Rig, wait_for
from tests.benchmarks.workload import item_ids, watched_users

_SHARE: Final = 0.7
_FIRST_GUESS: Final = 4000.0
_WARM_UP_S: Final = 20.0
_STEP_S: Final = 4.0
# A point of every plotted line; freshness is that of the events of this time.
_POINT_S: Final = 5.0
_WATCHED_A_SECOND: Final = 50.0
_MEBIBYTE: Final = 1024 * 1024
_MOST_GROWTH: Final = 0.05
_LEAST_GROWTH_MIB: Final = 10.0
_MOST_WAITING_S: Final = 10.0
_MOST_WAITING_AT_THE_END_S: Final = 1.0
# What was read is not kept for longer than needed: half an hour of recommendations is some gigabytes.
_RETENTION: Final = {
    "log.segment.bytes": str(16 * _MEBIBYTE),
    "log.retention.bytes": str(64 * _MEBIBYTE),
    "log.retention.check.interval.ms": "10000",
}
# Java takes what it is given, so the broker's memory is drawn and not judged.
_JUDGED: Final = ("ingest", "evolve", "redis data")


@dataclass
class Soak:
    """What was measured, a value a point.

    Attributes:
        at_s: Seconds since the start.
        memory_mib: By process; "redis data" is what Redis says that its data takes.
        waiting: Events in Kafka and not in Redis.
        p50_ms, p99_ms: From an event produced to its vector read; NaN where no watched user had one.
        freshness_ms: The same of each event, over the whole time.
    """

    rate: float
    top_rate: float | None
    at_s: list[float] = field(default_factory=list)
    memory_mib: dict[str, list[float]] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    freshness_ms: list[float] = field(default_factory=list)
    sent: int = 0

    def slope_mib_an_hour(self, name: str) -> float:
        """How fast the memory of a process grew over the second half: the median of the slopes between its points."""
        half = len(self.at_s) // 2
        hours, values = np.array(self.at_s[half:]) / 3600, np.array(self.memory_mib[name][half:])
        first, second = np.triu_indices(len(hours), 1)
        if not len(first):
            return 0.0
        return float(np.median((values[second] - values[first]) / (hours[second] - hours[first])))

    def growth_mib(self, name: str) -> float:
        """By how much it grew over the second half."""
        return self.slope_mib_an_hour(name) * (self.at_s[-1] - self.at_s[len(self.at_s) // 2]) / 3600

    def complaints(self) -> list[str]:
        """What is not as it must be."""
        found = []
        for name in _JUDGED:
            allowed = max(_LEAST_GROWTH_MIB, _MOST_GROWTH * float(np.median(self.memory_mib[name])))
            if self.growth_mib(name) > allowed:
                found.append(f"{name} grew by {self.growth_mib(name):.0f} MiB over the second half")
        if max(self.waiting) > _MOST_WAITING_S * self.rate:
            found.append(f"{max(self.waiting):,} events waited at the worst")
        last = float(np.mean(self.waiting[len(self.waiting) * 3 // 4 :]))
        if last > _MOST_WAITING_AT_THE_END_S * self.rate:
            found.append(f"{last:,.0f} events waited on average over the last quarter")
        return found

    def verdict(self, failure: str | None) -> str:
        """In one line."""
        complaints = self.complaints() if self.at_s else []
        if failure is not None:
            complaints.append(failure)
        if not self.at_s:
            return f"FAILED: {'; '.join(complaints)}"
        p50, p99 = np.percentile(self.freshness_ms, [50, 99]) if self.freshness_ms else (float("nan"), float("nan"))
        slopes = ", ".join(f"{name} {self.slope_mib_an_hour(name):+.1f}" for name in _JUDGED)
        return (
            f"{'FAILED' if complaints else 'PASSED'}: {self.at_s[-1] / 60:.1f} min at {self.rate:,.0f} events/s, "
            f"{self.sent:,} events; memory MiB/h: {slopes}; waiting at most {max(self.waiting):,} events, on average "
            f"{np.mean(self.waiting):,.0f}; freshness p50 {p50:.0f} ms, p99 {p99:.0f} ms"
            + (f"; {'; '.join(complaints)}" if complaints else "")
        )


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long.")] = 30.0,
    rate: Annotated[float | None, typer.Option(min=1, help="Events a second; default: 70 % of the top rate.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for soak.json and soak.png.")] = Path(".local/soak"),
) -> None:
    """Run at a steady rate for a long time and watch memory, lag and freshness."""
    configure_logging("console", "error", "soak")
    out.mkdir(parents=True, exist_ok=True)
    soak = Soak(rate or 0.0, None)
    failure = None
    with tempfile.TemporaryDirectory(prefix="driftline-soak-") as directory:
        try:
            _run(soak, Path(directory), minutes * 60)
        except (BenchmarkFailed, DriftlineError, ServerError) as error:
            failure = str(error)
    verdict = soak.verdict(failure)
    figures = asdict(soak)
    del figures["freshness_ms"]  # a hundred thousand; p50_ms and p99_ms say it a point
    (out / "soak.json").write_text(json.dumps({"verdict": verdict, **figures}, indent=1))
    if soak.at_s:
        _draw(soak, out / "soak.png", verdict)
    print(f"figures: {out / 'soak.json'}, {out / 'soak.png'}")
    print(verdict)
    sys.exit(0 if verdict.startswith("PASSED") else 1)


def _run(soak: Soak, directory: Path, seconds: float) -> None:
    bundle = directory / "bundle"
    write_pooling_bundle(bundle, item_ids())
    console = Console(stderr=True, highlight=False)
    with Rig(directory, _RETENTION) as rig, ExitStack() as stack:
        generator = stack.enter_context(
            Assistant("tests.benchmarks.generator", rig.kafka.bootstrap_servers, str(bundle))
        )
        console.print("warming the broker up")
        live.warm_broker(rig, generator, bundle, _WARM_UP_S)
        if not soak.rate:
            console.print("looking for the top rate")
            with live.driftline(rig, bundle) as pipeline:
                soak.top_rate = live.top_rate(pipeline, generator, _FIRST_GUESS, _STEP_S)
            soak.rate = _SHARE * soak.top_rate
        console.print(f"{seconds / 60:g} minutes at {soak.rate:,.0f} events/s")
        reader = stack.enter_context(
            Assistant("tests.benchmarks.reader", f"127.0.0.1:{rig.redis.port}", live.key_prefix(rig))
        )
        with live.driftline(rig, bundle) as pipeline, Redis.from_url(rig.redis.url) as redis:
            generator.tell(topic=pipeline.raw.name, rate=soak.rate, seconds=seconds)
            _watch(soak, rig, pipeline, reader, redis, seconds)
            soak.sent = generator.answer()["sent"]
            wait_for(lambda: pipeline.waiting() <= 0, "what was sent is applied", 120.0)


def _watch(soak: Soak, rig: Rig, pipeline: live.Pipeline, reader: Assistant, redis: Redis, seconds: float) -> None:
    processes = {service.name: psutil.Process(service.pid) for service in pipeline.services}
    processes |= {"kafka": psutil.Process(rig.kafka.pid), "redis": psutil.Process(rig.redis.pid)}
    users = watched_users(min(0.25, _WATCHED_A_SECOND / soak.rate))
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("running", total=seconds)
        reader.ask(users=users)
        while (elapsed := time.monotonic() - started) < seconds - _POINT_S:
            time.sleep(_POINT_S)
            fresh: list[float] = reader.ask(stop=True)["freshness_ms"]
            reader.ask(users=users)
            memory = {name: process.memory_info().rss / _MEBIBYTE for name, process in processes.items()}
            information: Any = redis.info("memory")
            memory["redis data"] = information["used_memory"] / _MEBIBYTE
            waiting = pipeline.waiting()
            soak.at_s.append(time.monotonic() - started)
            for name, value in memory.items():
                soak.memory_mib.setdefault(name, []).append(value)
            soak.waiting.append(waiting)
            p50, p99 = np.percentile(fresh, [50, 99]) if fresh else (float("nan"), float("nan"))
            soak.p50_ms.append(float(p50))
            soak.p99_ms.append(float(p99))
            soak.freshness_ms += fresh
            progress.update(
                task,
                completed=elapsed,
                description=f"{waiting:,} events wait, p99 {p99:.0f} ms, evolve {memory['evolve']:.0f} MiB",
            )


def _draw(soak: Soak, path: Path, title: str) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is needed at the end alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice above

    minutes = [at / 60 for at in soak.at_s]
    figure, panels = plt.subplots(4, 1, figsize=(11, 12), sharex=True, layout="constrained")
    lines: list[tuple[str, dict[str, Sequence[float]]]] = [
        ("resident memory, MiB", {name: of for name, of in soak.memory_mib.items() if name != "redis data"}),
        ("Redis's data, MiB", {"used_memory": soak.memory_mib["redis data"]}),
        ("events that wait", {"in Kafka, not in Redis": soak.waiting}),
        ("event to vector, ms", {"p50": soak.p50_ms, "p99": soak.p99_ms}),
    ]
    for panel, (label, series) in zip(panels, lines, strict=True):
        for name, values in series.items():
            panel.plot(minutes, values, label=name)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right")
    panels[-1].set_xlabel("minutes")
    figure.suptitle(title, fontsize=8, wrap=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
