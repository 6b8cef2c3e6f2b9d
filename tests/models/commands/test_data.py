import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from models.commands.data import describe

app = typer.Typer()
app.command()(describe)

LINES = """\
{"user_id": "u", "item_id": "a", "event_time": "2026-01-01T00:00:00Z", "event_id": "1"}
{"user_id": "u", "item_id": "b", "event_time": "2026-01-01T00:00:10Z", "event_id": "2", "type": "[bold]view"}
{"user_id": "u", "item_id": "b", "event_time": "2026-01-01T00:00:10Z", "event_id": "2"}
{"user_id": "v", "item_id": "a", "event_time": "2026-01-03T00:00:00Z"}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text(LINES)
    return path


def test_a_log_is_described_for_scripts_as_one_json_object(log: Path) -> None:
    finished = CliRunner().invoke(app, [str(log), "--output", "json"])
    assert finished.exit_code == 0
    found = json.loads(finished.stdout)
    assert (found["users"], found["items"], found["events"], found["repeats"]) == (2, 2, 3, 1)
    assert found["types"] == {"click": 2, "[bold]view": 1}
    assert found["first_ms"] == 1_767_225_600_000
    assert found["events_per_user"] == {"min": 1.0, "median": 1.5, "p90": pytest.approx(1.9), "max": 2.0}


def test_a_log_is_described_for_people_and_drawn(log: Path, tmp_path: Path) -> None:
    picture = tmp_path / "log.png"
    finished = CliRunner().invoke(app, [str(log), "--plot", str(picture)], env={"COLUMNS": "200"})
    assert finished.exit_code == 0
    assert "2026-01-01 00:00:00Z to 2026-01-03 00:00:00Z (2.0 days)" in finished.stdout
    assert "'[bold]view' 1" in finished.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_log_without_times_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("1 2\n1 3\n")
    finished = CliRunner().invoke(app, [str(path)])
    assert "none: the order of the source" in finished.stdout


def test_the_command_line_has_the_command_and_loads_neither_torch_nor_matplotlib_for_it(log: Path) -> None:
    program = (
        "import sys\n"
        "from models.commands.data import describe\n"
        f"describe({str(log)!r}, output='json')\n"
        "print(sorted({'torch', 'matplotlib', 'pyarrow'} & set(sys.modules)))\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"
