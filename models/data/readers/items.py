"""What people see of items, read from what comes with a data set."""

import csv
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from models.data.readers.files import decoded, read_lines, suffix_of
from models.data.readers.ratings import recbole_names
from models.errors import DataError
from models.spec import ItemMetadata


class ItemFormat(StrEnum):
    """How item metadata is written."""

    AUTO = "auto"
    JSON = "json"
    RECBOLE = "recbole"
    MOVIELENS_DAT = "movielens-dat"
    MOVIELENS_CSV = "movielens-csv"


_BY_SUFFIX = {
    ".item": ItemFormat.RECBOLE,
    ".dat": ItemFormat.MOVIELENS_DAT,
    ".csv": ItemFormat.MOVIELENS_CSV,
}
_NO_GENRES = "(no genres listed)"
# RecBole names these columns as the data set does.
_TITLE_NAMES = ("movie_title", "title", "name", "item_name")
_TOPIC_NAMES = ("class", "genre", "genres", "categories", "category")
_YEAR_NAMES = ("release_year", "year")


def read_items(
    path: str | Path, item_format: ItemFormat = ItemFormat.AUTO, item_map: str | Path | None = None
) -> dict[str, ItemMetadata]:
    """Read titles and topics.

    | format | what |
    |---|---|
    | `json` | ours: `{"item id": {"title": "...", "topics": ["..."]}}` |
    | `movielens-dat` | `movie::title::genre|genre`, as in movies.dat |
    | `movielens-csv` | a header, then `movieId,title,genre|genre`, as in movies.csv |
    | `recbole` | RecBole's `.item`: a header of `name:type`, then fields between tabs |

    A title carries its year, as in "Toy Story (1995)"; genres are the topics.

    Args:
        path: The file, UTF-8 or as GroupLens writes movies.dat (ISO 8859-1); plain, gzip or zstd.
        item_format: How it is written; AUTO goes by its name.
        item_map: A file of `item id` lines: which id of the metadata an item of the log has there. Items whose id the
            metadata lacks are left out.

    Returns:
        Item id to metadata.

    Raises:
        DataError: A file cannot be read or a line is none of the format; an item stands in a file twice; or the map and
            the metadata have no item in common.
    """
    path = Path(path)
    found = _BY_SUFFIX.get(suffix_of(path), ItemFormat.JSON) if item_format is ItemFormat.AUTO else item_format
    if found is ItemFormat.JSON:
        items = _read_json(path)
    else:
        rows = {ItemFormat.RECBOLE: _recbole, ItemFormat.MOVIELENS_DAT: _dat, ItemFormat.MOVIELENS_CSV: _csv}[found]
        items = {}
        for number, item_id, metadata in rows(path):
            if not item_id or not metadata.title:
                raise DataError(f"{path}, line {number}: no {'title' if item_id else 'item id'}")
            if item_id in items:
                raise DataError(f"{path}, line {number}: item {item_id!r} stands in the file twice. Leave one of them")
            items[item_id] = metadata
    return items if item_map is None else _mapped(items, path, Path(item_map))


_Row = tuple[int, str, ItemMetadata]


def _read_json(path: Path) -> dict[str, ItemMetadata]:
    content = b"\n".join(read_lines(path))
    try:
        return msgspec.json.decode(content, type=dict[str, ItemMetadata])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f'{path}: {error}. Expected {{"item id": {{"title": "...", "topics": ["..."]}}}}') from error


def _dat(path: Path) -> Iterator[_Row]:
    for number, raw in enumerate(read_lines(path), start=1):
        if not raw.strip():
            continue
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line = raw.decode("iso-8859-1")
        fields = line.split("::")
        if len(fields) != 3:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not movie::title::genres")
        yield number, fields[0], ItemMetadata(fields[1], _genres(fields[2]))


def _csv(path: Path) -> Iterator[_Row]:
    reader = csv.reader(decoded(path, number, line) for number, line in enumerate(read_lines(path), start=1))
    header = next(reader, [])
    if header[:3] != ["movieId", "title", "genres"]:
        raise DataError(f"{path}, line 1: the header is {header}, not movieId,title,genres")
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise DataError(f"{path}, line {reader.line_num}: {len(fields)} fields instead of {len(header)}")
        yield reader.line_num, fields[0], ItemMetadata(fields[1], _genres(fields[2]))


def _recbole(path: Path) -> Iterator[_Row]:
    lines = ((number, decoded(path, number, line)) for number, line in enumerate(read_lines(path), start=1) if line)
    _, header = next(lines, (1, ""))
    names = recbole_names(header)
    item_at, title_at = _place(names, ("item_id",)), _place(names, _TITLE_NAMES)
    topics_at, year_at = _place(names, _TOPIC_NAMES), _place(names, _YEAR_NAMES)
    if item_at is None or title_at is None:
        lacking = "item_id" if item_at is None else f"title ({', '.join(_TITLE_NAMES)})"
        raise DataError(f"{path}, line 1: the header {header!r} has no column for {lacking}")
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            raise DataError(f"{path}, line {number}: {len(fields)} fields instead of {len(names)}: {line[:80]!r}")
        title = fields[title_at]
        if title and year_at is not None and fields[year_at]:
            title = f"{title} ({fields[year_at]})"
        topics = () if topics_at is None else tuple(fields[topics_at].split())
        yield number, fields[item_at], ItemMetadata(title, topics)


def _place(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((place for place, name in enumerate(names) if name in wanted), None)


def _genres(text: str) -> tuple[str, ...]:
    return () if text == _NO_GENRES else tuple(genre for genre in text.split("|") if genre)


def _mapped(items: dict[str, ItemMetadata], path: Path, item_map: Path) -> dict[str, ItemMetadata]:
    mapped: dict[str, str] = {}
    for number, raw in enumerate(read_lines(item_map), start=1):
        fields = decoded(item_map, number, raw).split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(f"{item_map}, line {number}: {len(fields)} fields instead of 2 (item, id in the metadata)")
        if fields[0] in mapped:
            raise DataError(f"{item_map}, line {number}: item {fields[0]!r} stands in the file twice")
        mapped[fields[0]] = fields[1]
    found = {item_id: items[other] for item_id, other in mapped.items() if other in items}
    if not found:
        raise DataError(f"{item_map} names no item of {path}. Check that the two belong together")
    return found
