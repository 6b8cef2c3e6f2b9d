"""A file that a command writes: there under its name only when it is whole."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from streams.errors import UsageError


@contextmanager
def written_whole(out: str) -> Iterator[BinaryIO]:
    """Where to write what is to be in the file ``out``; "-" is stdout. A failure leaves no file and an older one as it was.

    Raises:
        UsageError: The file cannot be written.
    """
    if out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(out)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as stream:
            yield stream
        beside.replace(path)
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written: {error.strerror or error}; name a file in a folder of yours, with space left"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
