"""Two processes started by torchrun train one network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from models.training.distributed import Workers


def test_shares_are_disjoint_and_equally_many() -> None:
    shares = [Workers(rank, 3).share(range(11)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert sorted(batch for share in shares for batch in share) == list(range(9))


def test_alone_nothing_is_shared_or_averaged() -> None:
    workers = Workers()
    parameter = torch.ones(2, requires_grad=True)
    workers.average_gradients([parameter])
    assert list(workers.share(range(3))) == [0, 1, 2]
    assert parameter.grad is None
    assert workers.agree(7) == 7


def test_two_processes_train_one_network_and_the_first_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "streams.cli", "train", "--out", str(out), "--users", "60", "--epochs", "3", "--set", "dim=8"),
        *("--batch-tokens", "400", "--output", "json"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 1
    history = json.loads((out / "history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]


AVERAGED = """
import json, sys
from pathlib import Path
import torch
from models.training.distributed import Workers
workers = Workers.join()
used, unused = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
if workers.is_first:
    (used * torch.tensor([2.0, 4.0])).sum().backward()
    unused.sum().backward()
else:
    (used * torch.tensor([4.0, 0.0])).sum().backward()
workers.average_gradients([used, unused])
found = [used.grad.tolist(), unused.grad.tolist(), workers.agree(workers.rank)]
Path(sys.argv[1], str(workers.rank)).write_text(json.dumps(found))
"""


def test_gradients_are_averaged_and_one_that_a_process_lacks_counts_as_zero(tmp_path: Path) -> None:
    script = tmp_path / "averaged.py"
    script.write_text(AVERAGED)
    root = Path(__file__).parents[3]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(script), str(tmp_path)),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert run.returncode == 0, run.stderr
    assert [json.loads((tmp_path / rank).read_text()) for rank in "01"] == [[[3.0, 2.0], [0.5], 0]] * 2
