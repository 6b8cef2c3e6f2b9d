"""The figures of a run, and the three ways to show them: a table for people, JSON, and Markdown for the README."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

_VERSIONS: Final = ("faust-streaming", "confluent-kafka", "redis", "hiredis", "onnxruntime-gpu", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is held against.

    Attributes:
        of: The ratio to the stock agent, or the value itself.
        bound: The least ratio or value, or the value that it must stay below.
    """

    of: Literal["ratio", "value", "least"]
    bound: float


@dataclass(slots=True)
class Figure:
    """One line of the table: the same measurement over several runs, ours and the stock agent's.

    Attributes:
        section: Which part of the benchmark it belongs to.
        model: The bundle that it was measured with.
        runs: Our values, one a run.
        stock: The stock agent's, measured in turn with ours; empty where there is nothing to compare.
        others: The share of the machine, 0 to 1, that processes of others took meanwhile.
    """

    section: str
    name: str
    model: str
    unit: str
    runs: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    goal: Goal | None = None
    others: float = 0.0

    @property
    def value(self) -> float:
        """The median of our runs."""
        return median(self.runs)

    @property
    def ratio(self) -> float | None:
        """How many times better than the stock agent we are: more events a second, or less processor time."""
        if not self.stock:
            return None
        if self.unit == "events/s":
            return self.value / median(self.stock)
        return median(self.stock) / self.value if self.unit == "µs" else None

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None without one."""
        if self.goal is None:
            return None
        if self.goal.of == "ratio":
            return self.ratio is not None and self.ratio >= self.goal.bound
        return self.value >= self.goal.bound if self.goal.of == "least" else self.value < self.goal.bound


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": found,
    }


def as_json(figures: Sequence[Figure], about: dict[str, Any]) -> str:
    """Everything, with every run."""
    return json.dumps(
        {
            "machine": about,
            "figures": [
                {**asdict(figure), "median": figure.value, "ratio": figure.ratio, "reached": figure.reached}
                for figure in figures
            ],
        },
        indent=2,
    )


def as_markdown(figures: Sequence[Figure], about: dict[str, Any]) -> str:
    """The table for the README."""
    lines = [
        "| | model | Driftline | stock Faust agent | ratio | goal |",
        "|---|---|--:|--:|--:|---|",
    ]
    for figure in figures:
        ours, stock, ratio, goal = _cells(figure)
        lines.append(f"| {figure.section}: {figure.name} | {figure.model} | {ours} | {stock} | {ratio} | {goal} |")
    return "\n".join([*lines, "", _about(about, figures)])


def print_table(figures: Sequence[Figure], about: dict[str, Any], console: Console) -> None:
    """The table for people."""
    table = Table(title="Driftline benchmark", caption=_about(about, figures), title_justify="left")
    for heading in ("", "model"):
        table.add_column(heading)
    for heading in ("Driftline", "stock Faust agent", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("goal")
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            table.add_section()
            table.add_row(f"[bold]{section}[/]")
        colour = {True: "green", False: "red", None: "default"}[figure.reached]
        ours, stock, ratio, goal = _cells(figure)
        table.add_row(f"  {figure.name}", figure.model, ours, stock, ratio, f"[{colour}]{goal}[/]")
    console.print(table)


def _cells(figure: Figure) -> tuple[str, str, str, str]:
    goal = ""
    if figure.goal is not None:
        reached = "reached" if figure.reached else "missed"
        wanted = f"< {figure.goal.bound:g} {figure.unit}" if figure.goal.of == "value" else f"≥ {figure.goal.bound:g}×"
        goal = f"{wanted}: {reached}"
    return (
        _with_range(figure.runs, figure.unit),
        _with_range(figure.stock, figure.unit) if figure.stock else "",
        "" if figure.ratio is None else f"{figure.ratio:.1f}×",
        goal,
    )


def _with_range(values: Sequence[float], unit: str) -> str:
    middle = f"{_number(median(values))} {unit}"
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _about(about: dict[str, Any], figures: Sequence[Figure]) -> str:
    runs = max((len(figure.runs) for figure in figures), default=0)
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    return (
        f"Medians of up to {runs} runs (least–greatest). {about['cores']} cores ({about['processor']}), shared by "
        f"generator, Kafka, Redis and the workers. Python {about['python']}, {packages}. "
        f"Other processes had up to {100 * max((figure.others for figure in figures), default=0.0):.0f} % of the machine."
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
