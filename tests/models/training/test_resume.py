"""A training that is killed goes on as if nothing had been."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.commands.train import train
from models.errors import DataError

OPTIONS = ["--users", "40", "--epochs", "4", "--set", "dim=8", "--seed", "3", "--adversarial", "0.1"]

# Trains as the command does, and is killed by SIGKILL, as a machine that loses power, after an epoch.
KILLED = """
import os, signal, sys
from models.training import train as training
write = training.write_progress
def write_and_die(path, progress):
    write(path, progress)
    if len(progress.history) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
training.write_progress = write_and_die
sys.argv = ["driftline", *sys.argv[1:]]
from streams.cli import main
main()
"""


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streams.cli", "train", "--out", str(out), *OPTIONS, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_training_killed_and_resumed_gives_the_very_same_parameters(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).returncode == 0
    dead = subprocess.run(
        [sys.executable, "-c", KILLED, "train", "--out", str(killed), *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()

    resumed = run(killed, "--resume")

    assert resumed.returncode == 0, resumed.stderr
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    losses = [[epoch["loss"] for epoch in json.loads((out / "history.json").read_text())] for out in (whole, killed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_progress_of_another_training_is_refused(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", KILLED, "train", "--out", str(tmp_path), *OPTIONS], capture_output=True, check=False
    )
    with pytest.raises(DataError, match="progress of another training"):
        train(out=tmp_path, users=40, epochs=5, settings=["dim=8"], seed=3, adversarial=0.1, resume=True)
    with pytest.raises(DataError, match="progress of another network"):
        train(out=tmp_path, users=40, epochs=4, settings=["dim=16"], seed=3, adversarial=0.1, resume=True)
    # As a version wrote it that kept no averages.
    progress = tmp_path / "training.safetensors"
    with safe_open(progress, framework="pt") as file:
        record = file.metadata()
    tensors = {name: tensor for name, tensor in load_file(progress).items() if not name.startswith("average/")}
    save_file(tensors, progress, record)
    with pytest.raises(DataError, match="progress of another network"):
        train(out=tmp_path, users=40, epochs=4, settings=["dim=8"], seed=3, adversarial=0.1, resume=True)


def test_broken_progress_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"training.safetensors cannot be read.*--resume"):
        train(out=tmp_path, users=20, epochs=1, settings=["dim=8"], resume=True)


def test_resume_without_progress_starts_anew(tmp_path: Path) -> None:
    train(out=tmp_path, users=20, epochs=1, settings=["dim=8"], resume=True)
    assert (tmp_path / "model.safetensors").exists()
