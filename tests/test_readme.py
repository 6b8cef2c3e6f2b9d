"""README.md says what is there: its settings, its commands, its links."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from streams.cli import app
from streams.settings import load_settings
from tests.readme import README, with_settings

TEXT = README.read_text(encoding="utf-8")


def test_the_settings_table_is_that_of_the_settings() -> None:
    assert with_settings(TEXT) == TEXT, "run `.venv/bin/python -m tests.readme`"


def test_every_command_that_it_names_exists() -> None:
    command = get_command(app)
    known = set(command.commands)  # type: ignore[attr-defined]  # a group of commands
    named = set(re.findall(r"(?<!SETUSER )driftline ([a-z]+)\b", TEXT))
    assert named >= {"ingest", "evolve", "up", "train", "export"}
    assert named <= known


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+?)\)", TEXT))))
def test_every_file_that_it_links_to_exists(link: str) -> None:
    assert link.startswith("https://") or (README.parent / link).exists()


def test_its_settings_file_is_accepted(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    file = tmp_path / "driftline.toml"
    file.write_text(example[1], encoding="utf-8")
    settings = load_settings(toml=file, environ={})
    assert settings.topics.sources["purchases"] == tomllib.loads(example[1])["topics"]["sources"]["purchases"]
