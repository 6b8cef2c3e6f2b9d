import gzip
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
from pyarrow import parquet

from streams.contracts.event import CONTROL_TYPES
from streams.errors import DataError, UsageError
from streams.services.backfill.events import Batch, Count, SourceEvent
from streams.services.backfill.files import MAX_LINE_BYTES, FileSource, find_files
from streams.services.pull import write_parquet

TIME_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z
DAY_MS: Final = 24 * 3600 * 1000
NOW_MS: Final = TIME_MS + 100 * DAY_MS


def line(number: int, **fields: Any) -> bytes:
    event = {"user_id": f"u{number % 7}", "item_id": f"i{number}", "event_time": TIME_MS + number, **fields}
    return json.dumps(event).encode()


def lines(*numbers: int) -> bytes:
    return b"".join(line(number) + b"\n" for number in numbers)


def source(*paths: Path | str) -> FileSource:
    return FileSource([str(path) for path in paths], "click", NOW_MS)


def items(batches: Iterator[Batch]) -> list[str]:
    return [event.item_id for batch in batches for event in batch.events]


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, "zstd", asbytes=True)
    return packed


def numbered(count: int) -> list[dict[str, object]]:
    return [
        {"user_id": f"u{n % 7}", "item_id": f"i{n}", "type": "view", "event_id": f"e{n}", "event_time": TIME_MS + n}
        for n in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, object]], rows_a_group: int) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_a_group)


# Finding them


def test_a_folder_means_the_data_at_any_depth_in_the_order_of_the_paths(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c/d.parquet", "c/_temporary/x.jsonl", "c/.y.jsonl", "readme.txt", "A.JSONL"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_files([str(tmp_path)])]
    assert found == ["A.JSONL", "a.jsonl.gz", "b.jsonl", "c/d.parquet"]


def test_patterns_and_files_that_overlap_mean_each_file_once(tmp_path: Path) -> None:
    for name in ("day=1/a.jsonl", "day=2/a.jsonl", "other.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines(1))
    patterns = [f"{tmp_path}/day=*/*.jsonl", f"{tmp_path}/day=*", f"{tmp_path}/other.txt", f"{tmp_path}/**/a.jsonl"]
    found = [str(path.relative_to(tmp_path)) for path in find_files(patterns)]
    assert found == ["day=1/a.jsonl", "day=2/a.jsonl", "other.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(lines(1))
    (tmp_path / "a1.jsonl").write_bytes(lines(2))
    assert find_files([f"{tmp_path}/a[1].jsonl"]) == [tmp_path / "a[1].jsonl"]


@pytest.mark.parametrize("pattern", ["none.jsonl", "*.jsonl"])
def test_a_pattern_without_a_match_is_refused_by_name(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"no file matches .*jsonl\. Check the path"):
        source(f"{tmp_path}/{pattern}")


def test_a_folder_without_data_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .* holds no file that ends in \.jsonl"):
        source(tmp_path)


# What an event becomes


def test_a_line_becomes_an_event_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        line(1, type="buy", event_id="e1", value=2.5)
        + b"\r\n\n"
        + line(2, event_time="2026-01-01T01:00:00.250+01:00")  # no line end after the last line
    )
    [batch] = source(path).read()
    assert batch == Batch(
        3,
        [
            SourceEvent("u1", "i1", "buy", TIME_MS + 1, "e1", True, "log.jsonl", str(path), 0, 1, 0, TIME_MS + 1),
            SourceEvent(
                "u2",
                "i2",
                "click",
                TIME_MS + 250,
                "log.jsonl-0-3",
                False,
                "log.jsonl",
                str(path),
                0,
                3,
                2,
                TIME_MS + 250,
            ),
        ],
        [],
    )


def test_a_row_becomes_the_event_that_the_same_line_becomes(tmp_path: Path) -> None:
    rows = [
        [{"user_id": "ü", "item_id": "a", "type": "buy", "event_id": "e1", "event_time": TIME_MS}],
        [{"user_id": "u", "item_id": "b", "event_time": TIME_MS + 1, "value": 1.5, "position": 3}],
    ]
    path = tmp_path / "log.parquet"
    with path.open("wb") as stream:
        write_parquet(rows, stream)
    [batch] = source(path).read()
    assert batch == Batch(
        2,
        [
            SourceEvent("ü", "a", "buy", TIME_MS, "e1", True, "log.parquet", str(path), 0, 1, 0, TIME_MS),
            SourceEvent(
                "u", "b", "click", TIME_MS + 1, "log.parquet-0-2", False, "log.parquet", str(path), 0, 2, 1, TIME_MS + 1
            ),
        ],
        [],
    )


def test_lines_and_rows_may_ask_for_something(tmp_path: Path) -> None:
    asked = [
        {"user_id": "u", "item_id": "a", "event_time": TIME_MS},
        {"user_id": "u", "type": "$erase", "event_time": TIME_MS},
        {"user_id": "u", "type": "$identify", "anonymous_id": "d", "event_time": TIME_MS},
        {"user_id": "u", "type": "$identify", "event_time": TIME_MS},
        {"user_id": "u", "type": "$erase", "item_id": "a", "event_time": TIME_MS},
        {"user_id": "u", "type": "$all", "item_id": "a", "event_time": TIME_MS},
    ]
    (tmp_path / "log.jsonl").write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in asked))
    columns = ("user_id", "item_id", "type", "anonymous_id", "event_time")
    parquet.write_table(
        pa.table({name: [each.get(name) for each in asked] for name in columns}), tmp_path / "log.parquet"
    )
    for name in ("log.jsonl", "log.parquet"):
        read = source(tmp_path / name)
        [batch] = read.read()
        found = [(event.user_id, event.item_id, event.type, event.ordinal) for event in batch.events]
        assert found == [("u", "a", "click", 0), ("u", "", "$erase", 1), ("d", "u", "$identify", 2)]
        assert batch.bad == [3, 4, 5]
        assert dict(read.bad.by_reason) == {"missing_field": 1, "invalid_field": 1, "reserved_type": 1}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "without types.parquet"])
def test_what_asks_for_something_is_found_without_the_rest(tmp_path: Path, ending: str) -> None:
    number_of = {12_345: "$erase", 29_999: "$identify"}
    path = tmp_path / f"log.{ending}"
    events = [
        {
            "user_id": "u",
            "item_id": None if n in number_of else "a",
            "type": number_of.get(n, "buy"),
            "event_time": TIME_MS,
        }
        | {"anonymous_id": "d" if n == 29_999 else None}
        for n in range(30_000)
    ]
    if ending == "jsonl":
        # JSON has two ways to write a character.
        written = [json.dumps({name: each for name, each in event.items() if each}) for event in events]
        path.write_text("\n".join(written).replace('"$erase"', '"\\u0024erase"'))
    else:
        names = [name for name in events[0] if name != "type" or ending == "parquet"]
        parquet.write_table(pa.table({name: [event[name] for event in events] for name in names}), path)
    batches = list(source(path).read(only_controls=True))
    found = {event.ordinal: event.type for batch in batches for event in batch.events if event.type in CONTROL_TYPES}
    assert found == ({} if ending.startswith("without") else number_of)
    assert batches[-1].next == 30_000
    # Of rows those that lie beside one are decoded too.
    assert sum(len(batch.events) for batch in batches) <= 20_000


def test_rows_of_other_tools_may_hold_numbers_and_timestamps(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([7, 8], pa.int32()),
            "item_id": pa.array(["a", "b"]).dictionary_encode(),
            "event_time": pa.array([TIME_MS * 1_000_000 + 999_999, None], pa.timestamp("ns")),
        }
    )
    path = tmp_path / "log.data"
    parquet.write_table(table, path)
    read = source(path)
    [batch] = read.read()
    assert [(e.user_id, e.item_id, e.time_ms) for e in batch.events] == [("7", "a", TIME_MS)]
    assert (batch.next, batch.bad, dict(read.bad.by_reason)) == (2, [1], {"missing_field": 1})


def test_times_that_pandas_made_floats_are_taken(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u", "v"], "item_id": ["a", "b"], "event_time": [float(TIME_MS), math.nan]})
    parquet.write_table(table, tmp_path / "log.parquet")
    [batch] = source(tmp_path).read()
    assert ([event.time_ms for event in batch.events], batch.bad) == ([TIME_MS], [1])


@pytest.mark.parametrize("packing", ["plain", "gz", "zst", "several members"])
def test_packed_lines_are_the_same_lines(tmp_path: Path, packing: str) -> None:
    content = lines(*range(5000))
    packed = {
        "plain": content,
        "gz": gzip.compress(content),
        "zst": zstd(content),
        "several members": gzip.compress(content[:1000]) + gzip.compress(content[1000:]),
    }[packing]
    path = tmp_path / "events.log"  # what it is shows in its first bytes
    path.write_bytes(packed)
    assert items(source(path).read()) == [f"i{number}" for number in range(5000)]


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(1))
    assert items(source(tmp_path).read()) == ["i1"]


# Bad records


def test_bad_lines_are_counted_by_reason_and_the_first_few_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b"\n".join(
            [
                line(1),
                b"no json",
                json.dumps({"user_id": "u", "item_id": "a"}).encode(),
                line(4, user_id=""),
                line(5, event_time=NOW_MS + DAY_MS + 1),
                line(6, event_time=NOW_MS + DAY_MS),
                b'{"user_id": "\xff"}',
                line(8, item_id="a\0b"),
                b"[1]",
            ]
        )
    )
    read = source(path)
    [batch] = read.read()
    assert (batch.next, items(iter([batch])), batch.bad) == (9, ["i1", "i6"], [1, 2, 3, 4, 6, 7, 8])
    assert dict(read.bad.by_reason) == {
        "not_json": 1, "missing_field": 1, "bad_length": 1, "absurd_time": 1, "invalid_utf8": 1, "nul": 1,
        "not_an_object": 1,
    }  # fmt: skip
    assert len(read.bad.examples) == 5
    assert read.bad.examples[0].startswith(f"{path}, line 2: not valid JSON")
    assert read.bad.examples[1].startswith(f"{path}, line 3: there is no event_time")


def test_bad_rows_are_told_apart_as_bad_lines_are(tmp_path: Path) -> None:
    good: dict[str, object] = {"user_id": "u", "item_id": "a", "type": "view", "event_id": "e", "event_time": TIME_MS}
    rows: list[dict[str, object]] = [
        good,
        {**good, "user_id": None},
        {**good, "item_id": "x" * 129},
        {**good, "type": "x" * 65},
        {**good, "event_id": "a\0"},
        {**good, "event_time": 1_767_225_600},
        {**good, "event_id": ""},
    ]
    write_rows(tmp_path / "log.parquet", rows, 3)
    read = source(tmp_path)
    assert items(read.read()) == ["a"]
    assert dict(read.bad.by_reason) == {"missing_field": 1, "bad_length": 3, "nul": 1, "absurd_time": 1}
    assert read.bad.examples[0] == f"{tmp_path / 'log.parquet'}, row 2: user_id is empty"


def test_a_line_that_is_too_long_is_bad_and_the_next_one_good(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    long = b'{"user_id": "' + b"x" * (3 * MAX_LINE_BYTES) + b'"}'
    path.write_bytes(lines(1) + long + b"\n" + lines(2) + long)
    read = source(path)
    assert items(read.read()) == ["i1", "i2"]
    assert dict(read.bad.by_reason) == {"too_large": 2}
    assert read.bad.examples[0] == f"{path}, line 2: the line has more than 1,048,576 bytes"


# Batches, and going on


def test_batches_hold_at_most_ten_thousand_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*range(12_000)) + b"\n" * 21_000)
    for name in ("b.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(lines(1, 2, 3))
    batches = list(source(tmp_path).read())
    steps = [batch.next for batch in batches]
    assert all(0 < after - before <= 10_000 for before, after in zip([0, *steps], steps, strict=False))
    assert steps[-1] == 12_000 + 21_000 + 6
    # Small files do not make small batches.
    assert [event.topic for event in batches[-1].events] == ["b.jsonl"] * 3 + ["c.jsonl"] * 3


def test_reading_goes_on_after_any_batch_with_the_same_events(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*range(100)) + b"bad\n" + lines(*range(100, 9000)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*range(9000, 20_000))))
    write_rows(tmp_path / "c.parquet", numbered(25_000), 7000)
    (tmp_path / "d.jsonl.zst").write_bytes(zstd(lines(*range(3000))))
    batches = list(source(tmp_path).read())
    everything = [event for batch in batches for event in batch.events]
    assert len(everything) == 20_000 + 25_000 + 3000
    assert batches[-1].next == len(everything) + 1
    for place, batch in enumerate(batches):
        rest = [event for later in batches[place + 1 :] for event in later.events]
        again = list(source(tmp_path).read(batch.next))
        assert [event for later in again for event in later.events] == rest
        assert again[-1].next == batches[-1].next


@pytest.mark.parametrize("skip", [1, 6999, 7000, 7001, 9999, 10_000, 19_999])
def test_rows_are_skipped_exactly(tmp_path: Path, skip: int) -> None:
    write_rows(tmp_path / "a.parquet", numbered(10_000), 7000)
    write_rows(tmp_path / "b.parquet", numbered(10_000), 10_000)
    events = [event for batch in source(tmp_path).read(skip) for event in batch.events]
    offsets = [*range(1, 10_001), *range(1, 10_001)]
    assert [event.offset for event in events] == offsets[skip:]


def test_what_is_skipped_comes_as_empty_batches_so_that_the_reader_is_heard_of(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*range(45_000)))
    write_rows(tmp_path / "b.parquet", numbered(3), 2)
    batches = list(source(tmp_path).read(45_003))
    assert len(batches) >= 5
    assert all(batch == Batch(45_003, [], []) for batch in batches)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for day in ("1", "2"):
        (tmp_path / day).mkdir()
        (tmp_path / day / "a.jsonl").write_bytes(lines(1))
    [batch] = source(tmp_path).read()
    first, second = batch.events
    assert (first.topic, first.offset) == (second.topic, second.offset)
    assert first.topic_id != second.topic_id


# Counting


def test_rows_and_short_files_are_counted_exactly(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(1, 2, 3) + line(4))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*range(50))))
    write_rows(tmp_path / "c.parquet", numbered(700), 100)
    read = source(tmp_path)
    assert read.count() == Count(754, is_exact=True)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_long_files_are_estimated_from_their_beginnings(tmp_path: Path, ending: str) -> None:
    numbers = random.Random(1)
    content = b"".join(
        b'{"user_id": "%s", "item_id": "a"}\n' % numbers.randbytes(16).hex().encode() for _ in range(150_000)
    )
    packed = {"": content, ".gz": gzip.compress(content, 1), ".zst": zstd(content)}[ending]
    for copy in range(2):
        (tmp_path / f"{copy}.jsonl{ending}").write_bytes(packed)
    count = source(tmp_path).count()
    assert not count.is_exact
    assert count.records == pytest.approx(300_000, rel=0.2)


def test_of_many_files_some_are_looked_at(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(*range(10)))
    assert source(tmp_path).count() == Count(400, is_exact=False)


# Damage


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_packed_file_that_is_cut_off_ends_the_reading_with_the_place(tmp_path: Path, ending: str) -> None:
    content = lines(*range(50_000))
    packed = gzip.compress(content) if ending == "gz" else zstd(content)
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(DataError, match=r"a\.jsonl\.\w+: damaged or cut off soon after line [1-9]\d+: "):
        list(source(path).read())


def test_a_packed_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(lines(*range(5000))))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match="damaged or cut off soon after line"):
        list(source(tmp_path).read())


def test_parquet_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", numbered(100), 100)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        list(source(tmp_path).read())
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        source(tmp_path).count()


def test_parquet_that_lacks_a_column_or_has_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"user_id": ["u"], "event_time": [TIME_MS]}), path)
    with pytest.raises(DataError, match="has no column item_id; it has user_id, event_time"):
        list(source(path).read())
    parquet.write_table(pa.table({"user_id": ["u"], "item_id": [1.5], "event_time": [TIME_MS]}), path)
    with pytest.raises(DataError, match="column item_id is of type double"):
        list(source(path).read())
    parquet.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "event_time": ["now"]}), path)
    with pytest.raises(DataError, match="column event_time is of type string"):
        list(source(path).read())


def test_text_of_another_encoding_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes("\ufeff{}\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"is UTF-16\. Convert it"):
        list(source(tmp_path).read())


def test_a_file_that_is_gone_meanwhile_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(1))
    read = source(path)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl: No such file"):
        list(read.read())


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.zst"])
def test_without_pyarrow_the_extra_is_named(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        write_rows(tmp_path / name, numbered(1), 1)
    else:
        (tmp_path / name).write_bytes(zstd(lines(1)))
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from streams.errors import MissingExtra\n"
        "from streams.services.backfill.files import FileSource\n"
        "try:\n    list(FileSource(sys.argv[1:], 'click').read())\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, timeout=100, check=True
    )
    assert "pip install 'driftline[parquet]'" in finished.stdout
