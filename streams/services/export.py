"""Writing exported users to a file: JSON lines, or Parquet."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec
from msgspec import inspect

from streams.errors import MissingExtra
from streams.services.users import ExportedUser

if TYPE_CHECKING:
    import pyarrow

# A group of rows is what a reader loads at once, and what we hold: some 15 MB.
ROWS_A_GROUP: Final = 4096


def write_jsonl(users: Iterable[ExportedUser], out: BinaryIO) -> None:
    """One user a line."""
    encoder = msgspec.json.Encoder()
    buffer = bytearray()
    for user in users:
        encoder.encode_into(user, buffer)
        out.write(buffer)
        out.write(b"\n")


def write_parquet(users: Iterable[ExportedUser], out: BinaryIO) -> None:
    """One user a row, in the same columns as the fields of `ExportedUser`; zstd-compressed.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - only this format needs it
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("parquet", "pyarrow") from error
    schema = parquet_schema()
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in _groups(users):
            rows: list[dict[str, Any]] = msgspec.to_builtins(group)
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema), row_group_size=ROWS_A_GROUP)


def parquet_schema() -> "pyarrow.Schema":
    """The columns of the file, taken from `ExportedUser`, so that both formats hold the same."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    def arrow_type(found: inspect.Type) -> "pyarrow.DataType":
        match found:
            case inspect.StrType() | inspect.LiteralType():
                return pa.string()
            case inspect.IntType():
                return pa.int64()
            case inspect.FloatType():
                return pa.float64()
            case inspect.ListType(item_type=item):
                return pa.list_(arrow_type(item))
            case inspect.StructType(fields=fields):
                return pa.struct([pa.field(field.name, arrow_type(field.type)) for field in fields])
            case inspect.UnionType(types=types):
                (given,) = (each for each in types if not isinstance(each, inspect.NoneType))
                return arrow_type(given)
            case inspect.Metadata(type=inner):
                return arrow_type(inner)
        raise NotImplementedError(f"no Parquet type for {found}")

    columns = {field.name: arrow_type(field.type) for field in _fields()}
    columns["vector"] = pa.list_(pa.float32())  # what it is in Redis
    return pa.schema([pa.field(name, column) for name, column in columns.items()])


def _fields() -> tuple[inspect.Field, ...]:
    found = inspect.type_info(ExportedUser)
    return found.fields if isinstance(found, inspect.StructType) else ()


def _groups(users: Iterable[ExportedUser]) -> Iterator[list[ExportedUser]]:
    remaining = iter(users)
    while group := list(islice(remaining, ROWS_A_GROUP)):
        yield group
