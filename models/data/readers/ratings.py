"""The benchmark files' formats: one rating or interaction a line."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.readers.collect import EventCollector, InvalidTime, milliseconds_of_seconds
from models.data.readers.files import decoded, read_lines
from models.errors import DataError


@dataclass(frozen=True, slots=True)
class RatingColumns:
    """Where the fields of a line stand, from 0. None: the file has no such field.

    Attributes:
        width: Fields a line has.
    """

    user: int
    item: int
    rating: int | None
    time: int | None
    width: int


Line = tuple[int, list[str]]
"""A line's number, from 1, and its fields."""

_PAIR = RatingColumns(user=0, item=1, rating=None, time=None, width=2)
_MOVIELENS = RatingColumns(user=0, item=1, rating=2, time=3, width=4)
# GroupLens's names, and those of Event v1 and RecBole.
_NAMES = {
    "user": ("user_id", "userId"),
    "item": ("item_id", "itemId", "movie_id", "movieId"),
    "rating": ("rating",),
    "time": ("timestamp",),
}


def pair_lines(path: Path) -> tuple[RatingColumns, Iterator[Line]]:
    """`user item`, as SASRec's authors prepare a data set (Kang and McAuley, 2018): in time order, without times."""
    return _PAIR, ((number, line.split()) for number, line in _lines(path))


def dat_lines(path: Path) -> tuple[RatingColumns, Iterator[Line]]:
    """MovieLens's ratings.dat: `user::movie::rating::timestamp`, the timestamp in seconds."""
    return _MOVIELENS, ((number, line.split("::")) for number, line in _lines(path))


def csv_lines(path: Path) -> tuple[RatingColumns, Iterator[Line]]:
    """MovieLens's ratings.csv: a header, then `userId,movieId,rating,timestamp`, in the order of the header.

    Raises:
        DataError: The header has no user or no item.
    """
    # Decoded here, so that a wrong byte is named with its line; the csv module counts lines itself.
    reader = csv.reader(decoded(path, number, line) for number, line in enumerate(read_lines(path), start=1))
    columns = _columns(path, next(reader, []))
    return columns, ((reader.line_num, fields) for fields in _csv_rows(path, reader) if fields)


def recbole_lines(path: Path) -> tuple[RatingColumns, Iterator[Line]]:
    """RecBole's atomic `.inter`: a header of `name:type`, then fields between tabs (Zhao et al., 2021).

    The fields are user_id, item_id and, if there, rating and timestamp (seconds).

    Raises:
        DataError: The header has no user or no item.
    """
    lines = _lines(path)
    _, header = next(lines, (1, ""))
    return _columns(path, recbole_names(header)), ((number, line.split("\t")) for number, line in lines)


def recbole_names(header: str) -> list[str]:
    """The names in a RecBole header: ["user_id", "rating"] of "user_id:token<tab>rating:float"."""
    return [field.partition(":")[0] for field in header.split("\t")]


def collect_ratings(
    path: Path,
    columns: RatingColumns,
    lines: Iterable[Line],
    collector: EventCollector,
    event_type: str,
    min_rating: float | None,
) -> None:
    """Collect the events of a rating file: each line is one, or each whose rating is at least `min_rating`.

    Args:
        event_type: The type of all of them.

    Raises:
        DataError: A line has too many or too few fields, an empty id, or a rating or time that is none; or a least
            rating is asked for and the file has no ratings.
    """
    if min_rating is not None and columns.rating is None:
        raise DataError(f"{path} has no ratings, so none can be at least {min_rating:g}. Leave the least rating out")
    for number, fields in lines:
        if len(fields) != columns.width:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields instead of {columns.width}: {_shown(fields)}. "
                "Check the file, or name its format"
            )
        user_id, item_id = fields[columns.user], fields[columns.item]
        if not user_id or not item_id:
            raise DataError(f"{path}, line {number}: no {'item' if user_id else 'user'}: {_shown(fields)}")
        if (
            min_rating is not None
            and columns.rating is not None
            and _rating(path, number, fields[columns.rating]) < min_rating
        ):
            continue
        try:
            time_ms = 0 if columns.time is None else milliseconds_of_seconds(fields[columns.time])
        except InvalidTime as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        collector.add(user_id, item_id, event_type, time_ms, None, number)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line and not line.isspace():
            yield number, decoded(path, number, line)


def _csv_rows(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error


def _columns(path: Path, header: Sequence[str]) -> RatingColumns:
    found = {
        field: next((place for place, name in enumerate(header) if name.strip() in names), None)
        for field, names in _NAMES.items()
    }
    user, item = found["user"], found["item"]
    if user is None or item is None:
        lacking = "user" if user is None else "item"
        raise DataError(
            f"{path}, line 1: the header {_shown(header)} has no column for the {lacking}. "
            f"It takes: {', '.join(_NAMES[lacking])}"
        )
    return RatingColumns(user, item, found["rating"], found["time"], len(header))


def _rating(path: Path, number: int, text: str) -> float:
    try:
        rating = float(text)
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        raise DataError(f"{path}, line {number}: rating {text[:40]!r} is no number")
    return rating


def _shown(fields: Sequence[str]) -> str:
    text = repr(list(fields))
    return text if len(text) <= 120 else f"{text[:117]}..."
