"""Files: found by name, folder or pattern, opened whatever compressed them, and read line by line."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from models.errors import DataError, MissingExtra

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSED = frozenset({".gz", ".zst"})
_PATTERN = frozenset("*?[")


def suffix_of(path: Path) -> str:
    """The ending that names the format, in lower case: ".jsonl" of "Events.JSONL.gz"."""
    inner = path.stem if path.suffix.lower() in _COMPRESSED else path.name
    return Path(inner).suffix.lower()


def find_files(source: str | Path, suffixes: frozenset[str]) -> list[Path]:
    """The files that a source means, in order of their paths.

    Args:
        source: A file; a folder, of which every file with one of the suffixes is taken, at any depth, except those whose
            path has a part that begins with "." or "_", as other tools name what is not data; or a pattern with *, ? or
            **.
        suffixes: What files of a folder may end with, such as {".parquet"}.

    Raises:
        DataError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        inside = [found for found in path.rglob("*") if found.is_file() and suffix_of(found) in suffixes]
        files = [found for found in inside if not any(part[0] in "._" for part in found.relative_to(path).parts)]
        if not files:
            raise DataError(f"the folder {path} holds no {' or '.join(sorted(suffixes))} file. Name the file itself")
        return sorted(files)
    if path.exists() or not _PATTERN & set(str(source)):
        return [path]
    root = Path(path.anchor)
    matches = sorted(found for found in root.glob(str(path.relative_to(root))) if found.is_file())
    if not matches:
        raise DataError(f"no file matches {source}. Check the pattern")
    return matches


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their line ends; a file that begins as gzip or zstd does is unpacked.

    A byte order mark of UTF-8 is left out.

    Raises:
        DataError: The file cannot be read, is damaged or cut off, or is UTF-16.
        MissingExtra: It is zstd, and pyarrow is not installed.
    """
    number = 0
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield (_without_mark(path, line) if number == 1 else line).rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from error
        raise DataError(
            f"{path}, line {number + 1}: the file is damaged or cut off here: {error}. Fetch it again"
        ) from error


def decoded(path: Path, number: int, line: bytes) -> str:
    """A line as text.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1} of the line. "
            "Convert the file, as in: iconv -f ISO-8859-1 -t UTF-8"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | io.BufferedReader]:
    with path.open("rb") as stream:
        magic = stream.peek(4)[:4]
        if magic.startswith(_GZIP_MAGIC):
            with gzip.open(stream) as unpacked:
                yield io.BufferedReader(unpacked)
        elif magic == _ZSTD_MAGIC:
            try:
                import pyarrow as pa  # noqa: PLC0415 - only this compression needs it
            except ModuleNotFoundError as error:
                raise MissingExtra("parquet", "pyarrow") from error
            with pa.CompressedInputStream(stream, "zstd") as unpacked:
                yield io.BufferedReader(unpacked)  # type: ignore[type-var]  # it reads into buffers
        else:
            yield stream


def _without_mark(path: Path, line: bytes) -> bytes:
    if line.startswith(_UTF16_MARKS):
        raise DataError(f"{path} is UTF-16. Convert it, as in: iconv -f UTF-16 -t UTF-8")
    return line.removeprefix(_UTF8_MARK)
