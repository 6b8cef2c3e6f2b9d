import gzip
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cramjam
import pyarrow as pa
import pytest
from pyarrow import parquet

from models.data.events import Log, LoggedEvent, user_sequences
from models.data.readers import LogFormat, read_events
from models.errors import DataError

REAL = Path(__file__).parents[4] / "shared" / "data"

LINES = (
    b'{"user_id": "u", "item_id": "a", "event_time": 1000, "event_id": "e1"}\n'
    b'{"user_id": "v", "item_id": "b", "event_time": 2000, "event_id": "e2", "type": "view"}\n'
)
EVENTS = [LoggedEvent("u", "a", "click", 1000, "e1"), LoggedEvent("v", "b", "view", 2000, "e2")]


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


# JSON lines


def test_a_log_is_read_with_either_form_of_time_and_the_defaults_of_event_v1(tmp_path: Path) -> None:
    log = written(
        tmp_path / "log.jsonl",
        '{"user_id": "u", "item_id": "a", "type": "view", "event_time": "1970-01-01T01:00:02.5+01:00", "event_id": "e"}\n'
        "\n"
        '{"user_id": "u", "item_id": "b", "event_time": 1700000000000, "extra": {"ignored": true}}\n',
    )
    assert read_events(log) == Log(
        [LoggedEvent("u", "a", "view", 2_500, "e"), LoggedEvent("u", "b", "click", 1_700_000_000_000, "000000000003")]
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"not json", "JSON is malformed"),
        (b'{"user_id": "u", "event_time": 1}', "missing required field `item_id`"),
        (b'{"user_id": "", "item_id": "a", "event_time": 1}', r"user_id"),
        (b'{"user_id": "u", "item_id": "a"}', "missing required field `event_time`"),
        (b'{"user_id": "u", "item_id": "a", "event_time": "yesterday"}', "event_time"),
        (b'{"user_id": "u", "item_id": "a", "event_time": "2026-01-01T00:00:00"}', "event_time"),
        (b'{"user_id": "u", "item_id": "a", "event_time": -5}', "time -5 is out of range"),
        (b'{"user_id": "u", "item_id": "a", "event_time": 99999999999999999999}', "time 99999999999999999999 is out"),
        (b'{"user_id": "u", "item_id": "a", "event_time": NaN}', "JSON is malformed"),
        (b'{"user_id": "u", "item_id": "a", "event_time": 1.5}', "event_time"),
        (b'{"user_id": "\xe9", "item_id": "a", "event_time": 1}', "utf-8"),
        (b'{"user_id": "u", "item_id": "a", "event_time": 1, "x": ' + b"[" * 200_000, "recursion"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_problem(tmp_path: Path, line: bytes, problem: str) -> None:
    log = written(tmp_path / "log.jsonl", LINES + line + b"\n")
    with pytest.raises(DataError, match=rf"log\.jsonl, line 3: not an event: .*{problem}"):
        read_events(log)


def test_control_events_are_no_events_to_train_on(tmp_path: Path) -> None:
    control = b'{"user_id": "u", "type": "$erase"}\n{"user_id": "u", "type": "$identify", "anonymous_id": "a"}\n'
    assert read_events(written(tmp_path / "log.jsonl", control + LINES)).events == (
        read_events(written(tmp_path / "other.jsonl", b"\n\n" + LINES)).events
    )


def test_a_log_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        read_events(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no event"):
        read_events(written(tmp_path / "empty.jsonl", "\n\n"))


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: bytes(cramjam.zstd.compress(content))])
@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log"])
def test_what_packed_a_log_is_seen_in_its_bytes_whatever_its_name(tmp_path: Path, name: str, pack: Any) -> None:
    assert read_events(written(tmp_path / name, pack(LINES))).events == EVENTS


@pytest.mark.parametrize(
    ("pack", "line"), [(gzip.compress, r"\d{3,}"), (lambda content: bytes(cramjam.zstd.compress(content)), r"\d+")]
)
def test_a_packed_log_that_is_cut_off_is_refused_at_the_line_where_it_ends(
    tmp_path: Path, pack: Any, line: str
) -> None:
    rng = random.Random(1)
    lines = b"".join(
        b'{"user_id": "u%d", "item_id": "a", "event_time": 1}\n' % rng.getrandbits(60) for _ in range(3000)
    )
    log = written(tmp_path / "log.jsonl.gz", pack(lines)[:-3000])
    with pytest.raises(DataError, match=rf"log\.jsonl\.gz, line {line}: the file is damaged or cut off here"):
        read_events(log)


def test_a_byte_order_mark_of_utf8_is_left_out_and_utf16_is_refused(tmp_path: Path) -> None:
    assert read_events(written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES)).events == EVENTS
    with pytest.raises(DataError, match=r"b\.jsonl is UTF-16.*iconv"):
        read_events(written(tmp_path / "b.jsonl", LINES.decode().encode("utf-16")))


def test_a_repeated_event_id_of_a_user_is_dropped_and_counted_and_its_first_event_stays(tmp_path: Path) -> None:
    again = b'{"user_id": "u", "item_id": "z", "event_time": 9, "event_id": "e1"}\n'
    of_another = b'{"user_id": "w", "item_id": "z", "event_time": 9, "event_id": "e1"}\n'
    log = read_events(written(tmp_path / "log.jsonl", LINES + again + of_another))
    assert log.events == [*EVENTS, LoggedEvent("w", "z", "click", 9, "e1")]
    assert log.repeats == 1


def test_the_same_line_twice_without_an_id_is_two_events_in_the_order_of_the_file(tmp_path: Path) -> None:
    line = '{"user_id": "u", "item_id": "%s", "event_time": 7}\n'
    # Eleven lines: ids that are not padded would put the tenth before the second.
    log = read_events(written(tmp_path / "log.jsonl", "".join(line % item for item in "abcdefghijj")))
    assert log.repeats == 0
    assert user_sequences(log.events)[0].items == tuple("abcdefghijj")


def test_a_folder_is_one_log_in_order_of_its_paths_and_lines_of_two_files_are_not_repeats(tmp_path: Path) -> None:
    line = '{"user_id": "u", "item_id": "%s", "event_time": 7}\n'
    written(tmp_path / "day=2" / "part-0.jsonl", line % "c")
    written(tmp_path / "day=1" / "part-1.jsonl.gz", gzip.compress((line % "b").encode()))
    written(tmp_path / "day=1" / "part-0.jsonl", "\n" + line % "a")
    written(tmp_path / "_temporary" / "part-9.jsonl", "half a li")
    written(tmp_path / "day=1" / ".part-0.jsonl.crc", "\0")
    written(tmp_path / "README.txt", "no events here")
    events = read_events(tmp_path).events
    assert [(event.item_id, event.event_id) for event in events] == [
        ("a", "000000000002"), ("b", "000000000003"), ("c", "000000000004"),
    ]  # fmt: skip
    assert [event.item_id for event in read_events(f"{tmp_path}/**/part-0.*").events] == ["a", "c"]


def test_a_folder_or_pattern_without_a_log_and_one_with_two_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no .*\.jsonl.* file"):
        read_events(tmp_path)
    with pytest.raises(DataError, match=r"no file matches .*x\*\.jsonl"):
        read_events(tmp_path / "x*.jsonl")
    written(tmp_path / "a.jsonl", LINES)
    table(tmp_path / "b.parquet", user_id=["u"], item_id=["a"], event_time=[1])
    with pytest.raises(DataError, match=r"mixes formats: .*a\.jsonl is jsonl, .*b\.parquet is parquet"):
        read_events(tmp_path)


def test_a_name_with_brackets_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    assert read_events(written(tmp_path / "log[1].jsonl", LINES)).events == EVENTS


def test_a_bad_line_of_a_folder_is_named_with_its_own_file_and_line(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", LINES)
    written(tmp_path / "b.jsonl", LINES + b"{")
    with pytest.raises(DataError, match=r"b\.jsonl, line 3"):
        read_events(tmp_path)


# Parquet


def test_parquet_takes_whole_numbers_and_strings_as_ids_and_milliseconds_or_timestamps_as_times(tmp_path: Path) -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    noon_ms = 1_767_355_200_000
    for number, times in enumerate(
        [
            pa.array([noon_ms], pa.int64()),
            pa.array([float(noon_ms)], pa.float64()),
            pa.array([noon + timedelta(microseconds=1)], pa.timestamp("us", "UTC")),
            pa.array([noon.astimezone(timezone(timedelta(hours=3)))], pa.timestamp("ns", "+03:00")),
            pa.array([noon.replace(tzinfo=None)], pa.timestamp("s")),
        ]
    ):
        path = table(
            tmp_path / f"{number}.parquet",
            user_id=pa.array([12], pa.int32()),
            item_id=pa.array(["a"]).dictionary_encode(),
            event_time=times,
            price=[3.5],
        )
        assert read_events(path) == Log([LoggedEvent("12", "a", "click", noon_ms, "000000000001")])


def test_types_and_event_ids_of_parquet_are_taken_where_there_are_any(tmp_path: Path) -> None:
    path = table(
        tmp_path / "log.parquet",
        user_id=["u", "u", "u"],
        item_id=["a", "b", "c"],
        event_time=[1, 2, 3],
        type=["view", None, "view"],
        event_id=["x", None, "x"],
    )
    assert read_events(path) == Log(
        [LoggedEvent("u", "a", "view", 1, "x"), LoggedEvent("u", "b", "click", 2, "000000000002")], repeats=1
    )


def test_parquet_files_of_a_folder_are_one_log(tmp_path: Path) -> None:
    for number, item in enumerate("ab"):
        table(tmp_path / f"part-{number}.parquet", user_id=["u"], item_id=[item], event_time=[7])
    assert read_events(tmp_path).events == [
        LoggedEvent("u", "a", "click", 7, "000000000001"),
        LoggedEvent("u", "b", "click", 7, "000000000002"),
    ]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"item_id": ["a", None]}, "row 2: item_id is empty"),
        ({"user_id": ["", "u"]}, "row 1: user_id is empty"),
        ({"event_time": pa.array([1, None], pa.int64())}, "row 2: event_time is empty"),
        ({"event_time": [1.0, float("nan")]}, "row 2: event_time nan is no number"),
        ({"event_time": [1, -1]}, "row 2: event_time -1 is out of range"),
        ({"event_time": ["2026", "2027"]}, "column event_time is of type string"),
        ({"user_id": [1.0, 2.0]}, "column user_id is of type double"),
    ],
)
def test_a_bad_row_or_column_of_parquet_is_named(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    good: dict[str, Any] = {"user_id": ["u", "u"], "item_id": ["a", "b"], "event_time": [1, 2]}
    with pytest.raises(DataError, match=rf"log\.parquet.*{problem}"):
        read_events(table(tmp_path / "log.parquet", **{**good, **columns}))


def test_rows_are_counted_over_the_batches_of_a_file(tmp_path: Path) -> None:
    users = ["u"] * 70_000
    users[69_999] = ""
    path = table(tmp_path / "log.parquet", user_id=users, item_id=["a"] * 70_000, event_time=[1] * 70_000)
    with pytest.raises(DataError, match="row 70000: user_id is empty"):
        read_events(path)


def test_parquet_that_lacks_a_column_or_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column item_id, event_time; it has user_id"):
        read_events(table(tmp_path / "a.parquet", user_id=["u"]))
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as Parquet"):
        read_events(written(tmp_path / "b.parquet", b"PAR1 and then nothing of the kind"))


# The benchmark files


def test_pairs_without_times_get_their_users_place_as_time(tmp_path: Path) -> None:
    log = read_events(written(tmp_path / "ml.txt", "1 10\n1 20\n\n2 10\n1 10\n"))
    assert log == Log(
        [
            LoggedEvent("1", "10", "click", 0, "000000000001"),
            LoggedEvent("1", "20", "click", 1, "000000000002"),
            LoggedEvent("2", "10", "click", 0, "000000000004"),
            LoggedEvent("1", "10", "click", 2, "000000000005"),
        ],
        timed=False,
    )


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t3\t4\t1000\n7\t5\t2.5\t1000.25\n"


def test_recbole_fields_are_found_by_the_header_and_seconds_become_milliseconds(tmp_path: Path) -> None:
    expected = [LoggedEvent("7", "3", "click", 1_000_000, "000000000002")]
    log = read_events(written(tmp_path / "a.inter", INTER))
    assert log == Log([*expected, LoggedEvent("7", "5", "click", 1_000_250, "000000000003")])
    swapped = "timestamp:float\titem_id:token\tuser_id:token\n1000\t3\t7\n"
    assert read_events(written(tmp_path / "b.inter", swapped)) == Log(expected)


def test_recbole_without_timestamps_is_a_log_without_times(tmp_path: Path) -> None:
    log = read_events(written(tmp_path / "a.inter", "user_id:token\titem_id:token\n7\t3\n7\t4\n"))
    assert not log.timed
    assert [event.time_ms for event in log.events] == [0, 1]


def test_movielens_is_read_in_both_of_its_forms(tmp_path: Path) -> None:
    expected = [("1", "1193", 978_300_760_000), ("1", "661", 978_302_109_000)]
    dat = written(tmp_path / "ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n")
    comma = written(
        tmp_path / "ratings.csv", 'userId,movieId,rating,timestamp\r\n1,1193,5.0,978300760\r\n"1",661,3.0,978302109\r\n'
    )
    for path in (dat, comma):
        log = read_events(path)
        assert log.timed
        assert [(event.user_id, event.item_id, event.time_ms) for event in log.events] == expected
        assert {event.type for event in log.events} == {"click"}


def test_every_rating_is_an_event_unless_a_least_rating_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.inter", INTER)
    assert len(read_events(path).events) == 2
    assert [event.item_id for event in read_events(path, min_rating=4).events] == ["3"]
    with pytest.raises(DataError, match=r"holds no event of a rating of 4\.5 or more"):
        read_events(path, min_rating=4.5)
    with pytest.raises(DataError, match="nan, which is no number"):
        read_events(path, min_rating=float("nan"))
    for name, content in (("pairs.txt", b"1 2\n"), ("log.jsonl", LINES)):
        with pytest.raises(DataError, match=rf"{name} has no ratings, so none can be at least 4"):
            read_events(written(tmp_path / name, content), min_rating=4)


def test_benchmark_files_may_be_packed_and_their_name_need_not_say_the_format(tmp_path: Path) -> None:
    assert len(read_events(written(tmp_path / "ml-100k.inter.gz", gzip.compress(INTER.encode()))).events) == 2
    assert len(read_events(written(tmp_path / "interactions", INTER)).events) == 2
    assert len(read_events(written(tmp_path / "ratings", "1::2::3::4\n")).events) == 1
    assert len(read_events(written(tmp_path / "table", "userId,movieId\n1,2\n")).events) == 1
    assert len(read_events(written(tmp_path / "events", LINES)).events) == 2
    assert read_events(written(tmp_path / "odd.csv", "1 2\n"), LogFormat.PAIRS).events[0].item_id == "2"
    with pytest.raises(DataError, match=r"notes: its first line 'once upon a time' is in no format known.*jsonl, parq"):
        read_events(written(tmp_path / "notes", "once upon a time\n"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.txt", b"1 2\n1 2 3\n", r"line 2: 3 fields instead of 2: \['1', '2', '3'\]"),
        ("p.txt", b"1 2\n1 \xe9\n", "line 2: not UTF-8: byte 0xe9 at place 3"),
        ("r.dat", b"1::2::3::4\n\n1::2::3\n", "line 3: 3 fields instead of 4"),
        ("r.dat", b"1::2::3::soon\n", "line 1: time 'soon' is no number"),
        ("r.dat", b"1::2::3::nan\n", "line 1: time 'nan' is no number"),
        ("r.dat", b"1::2::3::-1\n", "line 1: time -1000 is out of range"),
        ("r.dat", b"1::2::3::1e15\n", "line 1: time 1000000000000000000 is out of range"),
        ("r.dat", b"::2::3::4\n", "line 1: no user"),
        ("r.csv", b"userId,movieId\n1,\n", "line 2: no item"),
        ("r.csv", b"user,movieId\n1,2\n", r"line 1: the header \['user', 'movieId'\] has no column for the user"),
        ("r.inter", b"user_id:token\trating:float\n1\t2\n", "line 1: .* no column for the item. It takes: item_id"),
        ("r.inter", b"", "line 1: .* no column for the user"),
    ],
)
def test_a_bad_line_of_a_benchmark_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"{name}, {problem}"):
        read_events(written(tmp_path / name, content))


def test_a_rating_that_is_none_is_named_when_ratings_count(tmp_path: Path) -> None:
    path = written(tmp_path / "r.dat", "1::2::good::4\n")
    assert len(read_events(path).events) == 1
    with pytest.raises(DataError, match=r"r\.dat, line 1: rating 'good' is no number"):
        read_events(path, min_rating=3)


def test_several_benchmark_files_are_not_one_log(tmp_path: Path) -> None:
    for number in range(2):
        written(tmp_path / f"{number}.dat", "1::2::3::4\n")
    with pytest.raises(DataError, match="is 2 files, but a log in the format movielens-dat is one"):
        read_events(tmp_path / "*.dat")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the MovieLens files in ../shared/data, which may not be copied")
def test_the_movielens_files_hold_what_their_authors_say() -> None:
    hundred = read_events(REAL / "ml-100k.inter.gz")
    # Harper and Konstan (2015): 943 users, 1,682 movies, 100,000 ratings, 1997-09-20 to 1998-04-22.
    assert len(hundred.events) == 100_000
    assert len({event.user_id for event in hundred.events}) == 943
    assert len({event.item_id for event in hundred.events}) == 1_682
    first = min(event.time_ms for event in hundred.events)
    assert datetime.fromtimestamp(first / 1000, UTC).date().isoformat() == "1997-09-20"
    million = read_events(REAL / "ml-1m.sasrec.txt.gz")
    assert not million.timed
    # Kang and McAuley (2018), table II: 6,040 users, 3,416 items, 1.0 M actions.
    assert (len({e.user_id for e in million.events}), len({e.item_id for e in million.events})) == (6_040, 3_416)
    assert len(million.events) == 999_611
