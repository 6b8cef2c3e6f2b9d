from pathlib import Path

import pytest

from streams.cli.output_file import written_whole
from streams.errors import UsageError


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with written_whole(str(out)) as stream:
        stream.write(b"all of it")
        assert not out.exists()
    assert out.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"older")

    def fail() -> None:
        with written_whole(str(out)) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert out.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_cannot_be_written_is_a_mistake_of_usage(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"none/out\.jsonl: cannot be written: No such file"),
        written_whole(str(tmp_path / "none" / "out.jsonl")),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"folder: cannot be written"), written_whole(str(tmp_path / "folder")):
        pass


def test_a_dash_is_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with written_whole("-") as stream:
        stream.write(b"text")
    assert capfdbinary.readouterr().out == b"text"
