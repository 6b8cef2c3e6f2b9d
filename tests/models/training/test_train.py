import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import read_checkpoint
from models.commands.results import Output
from models.commands.source import SplitName
from models.commands.train import train
from models.data.events import user_sequences
from models.data.splits import leave_one_out
from models.errors import BundleError, DataError, DriftlineError
from models.evaluation.leave_one_out import evaluate_encoder, evaluate_popularity
from models.networks.functions import item_vectors_of
from models.spec import Vectors
from models.synthetic import LogPlan, generate_log
from models.vocabulary import Vocabulary
from models.windows import WindowInputs

TINY = ["dim=8"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "first"
    train(out=out, users=40, epochs=2, settings=TINY, seed=3)
    return out


def test_the_same_seed_gives_the_same_parameters_and_another_gives_others(checkpoint: Path, tmp_path: Path) -> None:
    train(out=tmp_path / "again", users=40, epochs=2, settings=TINY, seed=3)
    train(out=tmp_path / "other", users=40, epochs=2, settings=TINY, seed=4)
    parameters = (checkpoint / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == parameters
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != parameters


def test_a_checkpoint_records_the_whole_command_and_the_figures(checkpoint: Path) -> None:
    record = read_checkpoint(checkpoint).checkpoint
    assert record.command.startswith(
        "driftline train --model sasrec --data synthetic --split leave-one-out --users 40 --events 48 --drift 0.5"
    )
    assert "--seed 3" in record.command
    assert set(record.metrics) >= {"hr@10", "ndcg@10", "popularity_hr@10", "popularity_ndcg@10"}
    assert record.metrics["held_out_users"] == 40
    assert record.config.types == ("click", "view")


def test_what_is_trained_is_in_the_file(checkpoint: Path) -> None:
    model = read_checkpoint(checkpoint)
    assert not model.network.training
    vectors = item_vectors_of(model.network)
    assert vectors.shape == (len(model.vocabulary) + 1, 8)
    assert not vectors[0].any()
    assert model.metadata["espresso-02"].title == "Burr grinder"


def test_training_learns_what_follows_what(tmp_path: Path) -> None:
    # Everyone walks the same circle of 12 items from a random start: the next item is certain, popularity is blind.
    rng = np.random.default_rng(0)
    lines = []
    for user in range(120):
        start = int(rng.integers(12))
        for step in range(8):
            event = {"user_id": f"u{user}", "item_id": f"i{(start + step) % 12}", "event_time": 1_000_000 * step}
            lines.append(json.dumps(event))
    log = tmp_path / "circle.jsonl"
    log.write_text("\n".join(lines))
    train(
        out=tmp_path / "checkpoint",
        data=str(log),
        epochs=60,
        patience=60,
        settings=["dim=16", "dropout=0"],
        batch_tokens=200,
        learning_rate=1e-2,
    )
    metrics = read_checkpoint(tmp_path / "checkpoint").checkpoint.metrics
    assert metrics["ndcg@10"] > 0.95
    assert metrics["popularity_ndcg@10"] < 0.7


def test_an_encoder_that_knows_the_answer_scores_1_and_popularity_is_counted_by_hand() -> None:
    sequences = user_sequences(generate_log(LogPlan(users=20, events=10, drift=0.5, seed=1)))
    judged = leave_one_out(sequences).test
    vocabulary = Vocabulary(sorted({item for sequence in sequences for item in sequence.items}))
    answers = iter(judged.targets)
    one_hot = np.eye(len(vocabulary) + 1, dtype=np.float32)
    one_hot[0] = 0.0

    def oracle(inputs: WindowInputs) -> Vectors:
        return np.stack([one_hot[vocabulary.rows[next(answers)]] for _ in range(len(inputs))])

    figures = evaluate_encoder(oracle, one_hot, judged, vocabulary, ("click", "view"), 50)
    assert (figures["hr@10"], figures["ndcg@10"]) == (1.0, 1.0)
    # The one target is the most popular unseen item of everyone who has not met it: rank 1 for all.
    target = judged.targets[0]
    alone = type(judged)(judged.contexts[:1], (target,))
    assert evaluate_popularity({target: 9}, alone, vocabulary)["popularity_ndcg@10"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt"}, "no model 'gpt'. Choose one of: popularity, "),
        (
            {"settings": ["dim=9"]},
            "dim must be a multiple of heads, not 9 of 4.*Settings of sasrec: dim, blocks, heads",
        ),
        ({"settings": ["dims=8"]}, "`dims`.*Settings of sasrec: dim, blocks"),
        ({"settings": ["dim"]}, "--set dim is not NAME=VALUE"),
        ({"settings": ["dim=8", "dim=16"]}, "--set dim=16 is not NAME=VALUE of a setting not yet given"),
        ({"settings": ["items=8"]}, "--set items=8 is not"),
        ({"settings": ["dim=many"]}, "Expected `int`"),
        ({"window_max": 5, "window_keep": 6}, "--window-keep 6 is larger than --window-max 5"),
        ({"data": "nowhere.jsonl"}, "cannot read nowhere.jsonl"),
        ({"metadata": Path("nowhere.json")}, "cannot read nowhere.json"),
        ({"learning_rate": 1e9, "users": 20, "epochs": 3, "settings": TINY}, "lower --learning-rate"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_remedy(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train(out=tmp_path / "never", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checkpoint.json", b"{", "cannot be read"),
        ("model.safetensors", b"nothing", "cannot be read"),
        ("vocabulary.json", b'["a"]', r"vocabulary.json has 1 items, and the network"),
    ],
)
def test_a_broken_checkpoint_is_named(
    checkpoint: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name != name else content)
    with pytest.raises(BundleError, match=message):
        read_checkpoint(tmp_path)


def test_a_missing_checkpoint_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no checkpoint at .*driftline train"):
        read_checkpoint(tmp_path)


def test_without_torch_the_commands_load_and_name_the_extra_to_install() -> None:
    script = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from export.commands import export
from models.commands.source import SplitName
from models.commands.train import train
from models.errors import MissingExtra
for command in (lambda: train(out=Path("x")), lambda: export(Path("x"), out=Path("y"))):
    try:
        command()
    except MissingExtra as error:
        print(error.exit_code, error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("6 torch is not installed") and "driftline[train]" in line for line in lines)


def test_the_result_can_be_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(out=tmp_path / "checkpoint", users=20, epochs=1, settings=TINY, output=Output.json)
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(tmp_path / "checkpoint")
    assert 0 <= result["ndcg@10"] <= result["hr@10"] <= 1


def test_every_error_is_one_of_ours_with_an_exit_code() -> None:
    assert DriftlineError.exit_code == 1
    assert (BundleError.exit_code, DataError.exit_code) == (4, 5)


def test_the_history_has_a_line_for_every_epoch_and_curves(checkpoint: Path) -> None:
    history = json.loads((checkpoint / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert {"loss", "hr@10", "ndcg@10"} <= history[1]["validation"].keys() & history[1]["training"].keys()
    lines = (checkpoint / "history.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {"epoch", "tokens_per_second", "loss", "training_ndcg@10", "validation_loss"} <= set(lines[0].split(","))
    assert (checkpoint / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (checkpoint / "training.safetensors").exists()


def test_validation_that_gets_no_better_stops_the_training_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    # Without learning, the first epoch stays the best.
    train(out=tmp_path, users=20, epochs=50, settings=TINY, learning_rate=0.0, patience=3)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [epoch["best"] for epoch in history] == [True, False, False, False]
    assert read_checkpoint(tmp_path).checkpoint.metrics["best_epoch"] == 1


def test_validation_every_third_epoch_also_validates_the_last(tmp_path: Path) -> None:
    train(out=tmp_path, users=20, epochs=7, settings=TINY, validate_every=3)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history if epoch["validation"]] == [3, 6, 7]


def test_a_split_by_time_needs_times(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"u{user} i{item}\n" for user in range(5) for item in range(5)))
    with pytest.raises(DataError, match="no times"):
        train(out=tmp_path / "never", data=str(log), split=SplitName.global_time)


def test_an_item_that_only_the_metadata_has_is_in_the_vocabulary(tmp_path: Path) -> None:
    log, metadata = tmp_path / "log.txt", tmp_path / "items.json"
    log.write_text("".join(f"u{user} i{item}\n" for user in range(5) for item in range(5)))
    metadata.write_text('{"new": {"title": "Not met yet"}}')
    train(out=tmp_path / "out", data=str(log), metadata=metadata, epochs=1, settings=TINY)
    assert "new" in read_checkpoint(tmp_path / "out").vocabulary.rows
