"""The demo's screen, and its plain lines where there is no terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streams.demo.watch import Watch

_COLOURS: Final = ("cyan", "yellow", "magenta", "green", "red", "blue", "bright_cyan", "bright_magenta")
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_EXPLANATION: Final = (
    "Simulated visitors browse a shop. Each click goes through Kafka to a model, which renews that visitor's vector in "
    "Redis. Here is one, read back from there."
)
# Rows of the screen besides the lists: head 1, explanation 2, drift 1, figures 2, two frames of 2.
_FIXED_ROWS: Final = 10
_WIDE: Final = 100
# A taste this strong counts as what the visitor is after.
_FAVOURITE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Figures:
    """What the demo has counted so far.

    Attributes:
        elapsed_s: Since the traffic began.
        seconds: How long it will run; None until it is told to stop.
        events: Messages on the raw topics, bad ones included.
        events_per_second: Over the last seconds.
        p50_ms, p99_ms: Freshness of about the last ten seconds; None without a sample.
    """

    elapsed_s: float
    seconds: float | None
    visitors: int
    events: int
    events_per_second: float
    recommendations: int
    dead_letters: int
    p50_ms: float | None
    p99_ms: float | None


def screen(
    visitor: str, watch: Watch, taste: Mapping[str, float], figures: Figures, now_s: float, width: int, height: int
) -> RenderableType:
    """The whole screen; made for 80 by 24 and larger.

    Args:
        visitor: Whom it shows.
        taste: What the simulated visitor really likes, by topic; the engine does not know it.
        now_s: Wall clock, for ages.
    """
    colours = dict(zip(watch.topics, _COLOURS * (len(watch.topics) // len(_COLOURS) + 1), strict=False))
    free = max(0, height - _FIXED_ROWS)
    upper = min(max(len(watch.topics), free // 2), 12, free)
    lower = min(free - upper, 10)
    layout = Layout()
    layout.split_column(
        Layout(_head(figures), size=1),
        Layout(Text(_EXPLANATION, style="dim"), size=2),
        Layout(name="who", size=upper + 2),
        Layout(_drift(watch, width), size=1),
        Layout(_suggestions(watch, colours, now_s, lower, wide=width >= _WIDE), size=lower + 2),
        Layout(_figures(figures), size=2),
        Layout(Text(" ")),  # an empty Text would count as none
    )
    layout["who"].split_row(
        Layout(_acts(visitor, watch, colours, now_s, upper)),
        Layout(_leans(watch, taste, colours, width - width // 2)),
    )
    return layout


def line(visitor: str, watch: Watch, figures: Figures) -> str:
    """One plain line that says how the demo stands."""
    parts = [
        f"{figures.elapsed_s:5.0f} s",
        f"{figures.events:,} events ({figures.events_per_second:.0f}/s)",
        f"fresh after p50 {_ms(figures.p50_ms)}, p99 {_ms(figures.p99_ms)}",
        f"{figures.recommendations:,} recommendations",
        f"{figures.dead_letters:,} dead letters",
    ]
    if watch.acts and watch.topics:
        lean, topic = max(zip(watch.leans, watch.topics, strict=True))
        latest = watch.acts[0]
        parts.append(f"{visitor}: {latest.type} on {latest.title}, leans to {topic} ({lean:.2f})")
        parts += [f"recommended {suggestion.title}" for suggestion in islice(watch.suggestions(0.0), 1)]
    return " | ".join(parts)


def spark(values: Sequence[float], width: int, full: float) -> str:
    """The newest values as a row of blocks, each between 0 and `full`.

    >>> spark([0.0, 0.5, 1.0], 2, 1.0)
    '▅█'
    """
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(min(max(value / full, 0.0), 1.0) * top)] for value in list(values)[-width:])


def _head(figures: Figures) -> RenderableType:
    row = Table.grid(expand=True)
    row.add_column()
    row.add_column(justify="right", no_wrap=True)
    of = "" if figures.seconds is None else f" of {figures.seconds:g}"
    row.add_row(
        Text.assemble(
            (" Driftline ", "bold reverse"),
            f"  {figures.visitors:,} visitors, {figures.events_per_second:.0f} events/s, {figures.elapsed_s:.0f}{of} s",
        ),
        Text("Ctrl-C ends it", style="dim"),
    )
    return row


def _acts(visitor: str, watch: Watch, colours: Mapping[str, str], now_s: float, rows: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    for act in watch.acts[:rows]:
        table.add_row(
            "●" if act.type == "click" else "○",
            Text(act.title, style=colours.get(act.topic, "")),
            Text(f"{max(0.0, now_s - act.time_ms / 1000):.0f} s ago", style="dim"),
        )
    return Panel(table, title=f"{visitor}: ● clicks ○ views", title_align="left", border_style="dim")


def _leans(watch: Watch, taste: Mapping[str, float], colours: Mapping[str, str], width: int) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    names = max((len(topic) for topic in watch.topics), default=0)
    table.add_column(width=names, no_wrap=True)
    table.add_column(width=1)
    table.add_column(width=5, justify="right")
    bar = max(4, width - names - 13)
    table.add_column(width=bar, no_wrap=True)
    for topic, lean in zip(watch.topics, watch.leans, strict=True):
        colour = colours[topic]
        table.add_row(
            Text(topic, style=colour),
            Text("♥" if taste.get(topic, 0.0) >= _FAVOURITE else " ", style="bold red"),
            f"{lean:.2f}",
            Text("█" * round(max(0.0, lean) * bar), style=colour),
        )
    if not watch.topics:
        table.add_row("this model's catalogue names no topics")
    return Panel(table, title="Its vector leans to (♥ true taste)", title_align="left", border_style="dim")


def _drift(watch: Watch, width: int) -> RenderableType:
    latest = watch.drifts[-1] if watch.drifts else 0.0
    told = f" last event {latest:.2f}, since the start {watch.moved:.2f} (cosine distance)"
    blocks = spark(watch.drifts, max(0, width - len(told) - 8), max([0.2, *watch.drifts]))
    return Text.assemble((" Drift ", "bold"), (blocks, "yellow"), told, no_wrap=True)


def _suggestions(watch: Watch, colours: Mapping[str, str], now_s: float, rows: int, *, wide: bool) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=3, justify="right")
    table.add_column(width=3)
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    for rank, suggestion in enumerate(watch.suggestions(now_s)[:rows], start=1):
        colour = colours.get(suggestion.topic, "")
        cells: list[RenderableType] = [
            f"{rank}",
            Text("new" if suggestion.is_new else "", style="bold green"),
            Text(suggestion.title, style=f"bold {colour}" if suggestion.is_new else colour),
        ]
        if wide:
            cells.append(Text(suggestion.topic, style=colour))
        because = ", ".join(suggestion.because)
        cells.append(Text(f"because of {because}" if because else "popular with everyone", style="dim"))
        table.add_row(*cells)
    return Panel(table, title="Recommended now", title_align="left", border_style="dim")


def _figures(figures: Figures) -> RenderableType:
    return Group(
        Text.assemble(
            (" Freshness ", "bold"),
            ("p50 ", ""), (_ms(figures.p50_ms), "bold green"),
            ("  p99 ", ""), (_ms(figures.p99_ms), "bold green"),
            ("   from event produced to vector readable", "dim"),
            no_wrap=True,
        ),
        Text.assemble(
            (f" {figures.events:,} events", "bold"),
            f" → {figures.recommendations:,} recommendations, "
            f"{figures.dead_letters:,} dead letters ",
            ("(bad on purpose)", "dim"),
            no_wrap=True,
        ),
    )  # fmt: skip


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"
