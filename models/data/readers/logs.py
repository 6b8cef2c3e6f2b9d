"""One function for logs in every format."""

import math
from enum import StrEnum
from pathlib import Path

from models.data.events import Log
from models.data.readers.collect import EventCollector
from models.data.readers.files import decoded, find_files, read_lines, suffix_of
from models.data.readers.json_lines import collect_json_lines
from models.data.readers.parquet import collect_parquet
from models.data.readers.ratings import collect_ratings, csv_lines, dat_lines, pair_lines, recbole_lines
from models.errors import DataError


class LogFormat(StrEnum):
    """How a log is written."""

    AUTO = "auto"
    JSONL = "jsonl"
    PARQUET = "parquet"
    PAIRS = "pairs"
    RECBOLE = "recbole"
    MOVIELENS_DAT = "movielens-dat"
    MOVIELENS_CSV = "movielens-csv"


DEFAULT_TYPE = "click"
"""The type of an event whose source gives none: of every rating, for one."""

_BY_SUFFIX = {
    ".jsonl": LogFormat.JSONL,
    ".ndjson": LogFormat.JSONL,
    ".json": LogFormat.JSONL,
    ".parquet": LogFormat.PARQUET,
    ".pq": LogFormat.PARQUET,
    ".inter": LogFormat.RECBOLE,
    ".csv": LogFormat.MOVIELENS_CSV,
}
_IN_FOLDERS = frozenset(suffix for suffix, found in _BY_SUFFIX.items() if found in {LogFormat.JSONL, LogFormat.PARQUET})
_TABLES = {
    LogFormat.PAIRS: pair_lines,
    LogFormat.RECBOLE: recbole_lines,
    LogFormat.MOVIELENS_DAT: dat_lines,
    LogFormat.MOVIELENS_CSV: csv_lines,
}


def read_events(source: str | Path, log_format: LogFormat = LogFormat.AUTO, min_rating: float | None = None) -> Log:
    """Read a log of events.

    | format | what |
    |---|---|
    | `jsonl` | one Event v1 a line, with `event_time`; plain, gzip or zstd |
    | `parquet` | columns user_id, item_id, event_time (milliseconds, or timestamps) and, if there, type and event_id |
    | `pairs` | `user item` a line in time order, as SASRec's authors prepare a data set; without times |
    | `recbole` | RecBole's `.inter`: a header of `name:type`, fields between tabs, timestamp in seconds |
    | `movielens-dat` | `user::movie::rating::timestamp`, in seconds |
    | `movielens-csv` | a header, then `userId,movieId,rating,timestamp`, in seconds |

    JSON lines and Parquet may be several files: a folder or a pattern. Any format of lines may be packed by gzip or zstd.

    A rating is an interaction whatever its value, as is the rule for implicit feedback (Rendle et al., 2009; Kang and
    McAuley, 2018), of type "click"; `min_rating` makes it those of at least that value. An event without a type is a
    "click" too. An event without an id has its line (Parquet: its row), zero-padded, so that events of one millisecond
    keep the order of the log. An event whose id its user had before is left out and counted; without ids nothing is,
    for to come back to an item is an event like any other.

    A source without times (`pairs`, or `recbole` and CSV without that column) has `timed` False and as time the event's
    place among those of its user: 0, 1, 2 ms, … So order is kept, and no model can learn from times, for all gaps are
    the same and lie below every bucket of gaps.

    Args:
        source: A file, or for JSON lines and Parquet a folder or a pattern.
        log_format: How it is written; AUTO goes by the file's name, else by its first line.
        min_rating: The least rating that counts.

    Returns:
        The events in the order of the log.

    Raises:
        DataError: The source cannot be read, holds no event, or a line is none. The message names file and line.
        MissingExtra: It is Parquet or zstd, and pyarrow is not installed.
    """
    if min_rating is not None and not math.isfinite(min_rating):
        raise DataError(f"the least rating is {min_rating:g}, which is no number to compare with. Name one such as 4")
    files = find_files(source, _IN_FOLDERS)
    formats = {path: _format_of(path) if log_format is LogFormat.AUTO else log_format for path in files}
    found = formats[files[0]]
    for path, other in formats.items():
        if other is not found:
            raise DataError(f"{source} mixes formats: {files[0]} is {found}, {path} is {other}. Name one of them")
    if found in _TABLES:
        if len(files) > 1:
            raise DataError(f"{source} is {len(files)} files, but a log in the format {found} is one. Name one of them")
        log = _read_table(files[0], found, min_rating)
    else:
        if min_rating is not None:
            raise DataError(
                f"{source} has no ratings, so none can be at least {min_rating:g}. Leave the least rating out"
            )
        collector = EventCollector(timed=True)
        collect = collect_json_lines if found is LogFormat.JSONL else collect_parquet
        lines = 0
        for path in files:
            lines += collect(path, collector, lines, DEFAULT_TYPE)
        log = collector.log()
    if not log.events:
        least = "" if min_rating is None else f" of a rating of {min_rating:g} or more"
        raise DataError(f"{source} holds no event{least}. Check that it is the file that you mean")
    return log


def _read_table(path: Path, log_format: LogFormat, min_rating: float | None) -> Log:
    columns, lines = _TABLES[log_format](path)
    collector = EventCollector(timed=columns.time is not None)
    collect_ratings(path, columns, lines, collector, DEFAULT_TYPE, min_rating)
    return collector.log()


def _format_of(path: Path) -> LogFormat:
    """The format by the file's name; where that says nothing, as with .txt and .dat, by its first line."""
    known = _BY_SUFFIX.get(suffix_of(path))
    if known is not None:
        return known
    line = ""
    for number, raw in enumerate(read_lines(path), start=1):
        if raw.startswith(b"PAR1"):
            return LogFormat.PARQUET
        line = decoded(path, number, raw).strip()
        if line:
            break
    if line.startswith("{"):
        return LogFormat.JSONL
    if "::" in line:
        return LogFormat.MOVIELENS_DAT
    if "\t" in line and ":" in line:
        return LogFormat.RECBOLE
    if "," in line:
        return LogFormat.MOVIELENS_CSV
    if len(line.split()) == 2 or not line:
        return LogFormat.PAIRS
    formats = ", ".join(each for each in LogFormat if each is not LogFormat.AUTO)
    raise DataError(f"{path}: its first line {line[:80]!r} is in no format known. Name the format, one of: {formats}")
