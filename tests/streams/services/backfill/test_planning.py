"""What is refused before anything is asked of a server, and how a plan goes on."""

from pathlib import Path

import pytest

from streams.contracts.generation import Plan, Progress, Request, SourceFile, SourceRange
from streams.errors import DataError, StateRefused, UsageError
from streams.log.topics import Extent, Partition
from streams.services.backfill.planning import (
    check_files,
    check_request,
    is_last_round,
    next_round,
    progress_of,
    words_of,
)
from streams.settings import Settings

BEGUN_MS = 1_767_225_600_000
PLAN = Plan(
    Request("interactions"), 2, 2, "id", "v1", BEGUN_MS,
    ranges=(SourceRange("interactions", "id", 0, 0, 10), SourceRange("interactions", "id", 1, 5, 5)),
    follows=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("files", ("a",), by_duration="P7D"), "--by-duration P7D is for topics; files are read whole"),
        (Request("raw", ("clicks", "views"), from_offsets="0:5"), "names offsets of one topic, and there are 2"),
        (Request("interactions", recommendations="lists"), "--recommendations TOPIC and --every N go together"),
        (Request("interactions", every=5), "--recommendations TOPIC and --every N go together"),
        (Request("interactions", recommendations="recommendations", every=5), "for live recommendations, and"),
        (Request("interactions", recommendations="events.dlq", every=5), "for dead letters, and"),
        (Request("interactions", recommendations="clicks", every=5), "for raw events, and"),
    ],
)
def test_what_cannot_be_meant_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_request(Settings(), request_)


@pytest.mark.parametrize(
    "request_",
    [
        Request("interactions", from_datetime="2026-01-01", to_datetime="2026-02-01"),
        Request("raw", ("clicks",), from_offsets="0:5"),
        Request("files", ("a",), default_type="buy", recommendations="lists", every=1),
    ],
)
def test_what_can_be_meant_is_let_through(request_: Request) -> None:
    check_request(Settings(), request_)


def test_a_request_is_said_as_it_was_written() -> None:
    assert words_of(Request("interactions")) == ""
    raw = Request("raw", ("clicks", "views"), by_duration="P7D", recommendations="lists", every=3)
    assert words_of(raw) == " --raw clicks --raw views --by-duration P7D --recommendations lists --every 3"
    assert words_of(Request("files", ("a", "b/*.parquet"), default_type="buy")) == " a 'b/*.parquet' --type buy"


def test_files_that_are_no_longer_those_of_the_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"12345")
    plan = Plan(Request("files", ("a",)), 1, 1, "id", "v1", BEGUN_MS, files=(SourceFile(str(path), 5),))
    check_files(plan)
    path.write_bytes(b"123456")
    with pytest.raises(DataError, match=r"a\.jsonl has 6 bytes, and 5 when the backfill was begun"):
        check_files(plan)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl: No such file or directory"):
        check_files(plan)


def test_a_partition_without_progress_is_refused() -> None:
    with pytest.raises(StateRefused, match="of 1 partitions of generation g2 it is not recorded how far"):
        progress_of("g2", PLAN, {0: Progress(3)})


def test_rounds_go_on_until_one_is_short_or_they_get_no_shorter() -> None:
    assert not is_last_round(PLAN, BEGUN_MS + 60_000)
    assert is_last_round(PLAN, BEGUN_MS + 1_999)
    first = next_round(PLAN, {Partition("interactions", 0): Extent(0, 25), Partition("interactions", 1): Extent(0, 5)},
                       BEGUN_MS + 60_000)  # fmt: skip
    assert [(each.start, each.end) for each in first.ranges] == [(10, 25), (5, 5)]
    assert (first.created_ms, first.before_ms) == (BEGUN_MS + 60_000, 60_000)
    assert not is_last_round(first, first.created_ms + 30_000)
    assert is_last_round(first, first.created_ms + 30_001)


def test_a_plan_with_an_end_has_one_round() -> None:
    whole = Plan(Request("interactions", to_datetime="2026-01-01"), 2, 2, "id", "v1", BEGUN_MS, ranges=PLAN.ranges)
    assert is_last_round(whole, BEGUN_MS + 60_000)
