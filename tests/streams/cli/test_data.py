from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.cli.data import pull
from streams.errors import UsageError


@pytest.mark.parametrize("name", ["log", "log.csv", "log.gz", "log.json.gz"])
def test_a_file_whose_name_says_no_format_is_refused_before_kafka_is_asked(name: str) -> None:
    with pytest.raises(UsageError, match=r"its name should end with \.jsonl, \.jsonl\.gz or \.parquet"):
        pull(Path(name))


def test_the_group_has_the_command_of_each_side() -> None:
    shown = CliRunner().invoke(app, ["data", "--help"]).stdout
    assert "describe" in shown
    assert "pull" in shown
