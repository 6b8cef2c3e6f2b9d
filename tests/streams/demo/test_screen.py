"""The screen fits its terminal, and says what the demo knows."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from streams.demo.screen import Figures, line, screen, spark
from streams.demo.watch import TopicDirections, Watch
from tests.streams.demo.watched import METADATA, VECTORS, VOCABULARY, row

FIGURES = Figures(
    elapsed_s=12.0,
    seconds=20.0,
    visitors=200,
    events=2431,
    events_per_second=199.6,
    recommendations=2345,
    dead_letters=24,
    p50_ms=31.4,
    p99_ms=None,
)


@pytest.fixture
def watch() -> Watch:
    watch = Watch(TopicDirections(VECTORS, VOCABULARY, METADATA), METADATA)
    watch.observe(row(1, (1, 0), ["east"], ["north"], None), 0.0)
    watch.observe(row(2, (1, 0), ["north", "east"], ["west", "north"], 0.25), 5.0)
    return watch


def shown(watch: Watch, width: int, height: int, figures: Figures = FIGURES) -> list[str]:
    console = Console(file=StringIO(), width=width, height=height, color_system=None)
    lines = console.render_lines(screen("visitor-0001", watch, {"Wild": 0.7}, figures, 6.0, width, height))
    return ["".join(segment.text for segment in segments) for segments in lines]


@pytest.mark.parametrize(("width", "height"), [(60, 20), (80, 24), (120, 40), (200, 60)])
def test_it_fills_the_terminal_and_no_more(watch: Watch, width: int, height: int) -> None:
    lines = shown(watch, width, height)
    assert len(lines) == height
    assert {len(each) for each in lines} == {width}


def test_80_by_24_shows_everything(watch: Watch) -> None:
    text = " ".join(" ".join(shown(watch, 80, 24)).split())  # each run of blanks as one
    for part in (
        "200 visitors, 200 events/s, 12 of 20 s",
        "● East",
        "○ North",
        "Directions 0.71 ███",
        "Wild ♥ -1.00",
        "last event 0.25, since the start 0.00",
        "1 new West",
        "2 North",
        "because of East",
        "p50 31 ms p99 –",
        "2,431 events → 2,345 recommendations, 24 dead letters (bad on purpose)",
    ):
        assert part in text


def test_a_million_events_still_fit_80_columns(watch: Watch) -> None:
    big = replace(FIGURES, events=1_234_567, recommendations=1_222_333, dead_letters=12_345)
    assert "12,345 dead letters" in "\n".join(shown(watch, 80, 24, big))


def test_a_line_says_how_it_stands(watch: Watch) -> None:
    told = line("visitor-0001", watch, FIGURES)
    assert told.strip() == (
        "12 s | 2,431 events (200/s) | fresh after p50 31 ms, p99 – | 2,345 recommendations | 24 dead letters | "
        "visitor-0001: click on East, leans to Directions (0.71) | recommended West"
    )


def test_a_spark_is_as_high_as_its_value() -> None:
    assert spark([0.0, 0.5, 1.0, 2.0, -1.0], 10, 1.0) == "▁▅██▁"
    assert spark([0.0, 0.0, 1.0], 1, 1.0) == "█"
    assert spark([], 5, 1.0) == ""
