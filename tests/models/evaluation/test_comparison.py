import dataclasses
import json
import string
from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.data.splits import Judged
from models.errors import DataError
from models.evaluation.comparison import compare_models, encoder_speed
from models.evaluation.plots import write_plots
from models.evaluation.recommender import Recommender
from models.evaluation.report import EvaluationReport, markdown, report_tables
from models.spec import Vectors, WindowRule
from models.vocabulary import Vocabulary
from models.windows import WindowInputs
from tests.models.evaluation.toys import recommender, sequence

LETTERS = string.ascii_lowercase
# Everyone walks the alphabet: after d comes e.
JUDGED = Judged(
    tuple(sequence(f"user-{n}", LETTERS[n % 10 : n % 10 + 5]) for n in range(30)),
    tuple(LETTERS[n % 10 + 5] for n in range(30)),
)


def alphabetical(name: str, step: int) -> Recommender:
    """Predicts the letter that is `step` after the newest."""

    def encode(inputs: WindowInputs) -> Vectors:
        newest = inputs.items[np.arange(len(inputs)), inputs.lengths - 1]
        vectors: Vectors = np.eye(len(LETTERS) + 1, dtype=np.float32)[np.minimum(newest + step, len(LETTERS))]
        return vectors

    return Recommender(
        Vocabulary(LETTERS), ("click",), WindowRule(40, 40), encode, np.eye(27, dtype=np.float32), name, "1",
        size_bytes=2_916,
    )  # fmt: skip


def test_models_stand_best_first_with_how_far_the_others_are_behind_on_the_same_users() -> None:
    wrong, right = alphabetical("wrong", 2), alphabetical("right", 1)
    best, other = compare_models([("w", wrong), ("r", right)], JUDGED)
    assert (best.name, best.source, best.behind, best.items) == ("right", "r", None, 26)
    assert best.figures["ndcg@10"].mean == 1.0
    # Of 21 unseen items the wrong one comes first and all others tie, so the target is last.
    assert other.figures["hr@20"].mean == 0.0
    assert other.behind is not None
    assert (other.behind.interval.mean, other.behind.interval.low) == (1.0, 1.0)
    assert best.unknown_targets == 0.0


def test_a_target_that_a_model_lacks_counts_as_missed_and_is_told() -> None:
    small = recommender("abcdefgh", rule=WindowRule(40, 40))
    (found,) = compare_models([("s", small)], JUDGED)
    # Targets are f to o; only f, g and h, of nine of thirty users, are known. All 8 items lie within the cut-off of 20.
    assert found.unknown_targets == pytest.approx(21 / 30)
    assert found.figures["hr@20"].mean == pytest.approx(9 / 30)
    report = EvaluationReport("log", "leave-one-out", 30, (found,))
    assert "up to 70.0%" in report_tables(report)[0].note


def test_the_speed_of_an_encoder_is_measured_only_at_lengths_that_it_takes() -> None:
    assert encoder_speed(recommender("abc", rule=WindowRule(50, 25)), 200) is None
    assert (encoder_speed(recommender("abc", rule=WindowRule(50, 25)), 50) or 0) > 0


def test_a_report_is_markdown_json_and_plots(tmp_path: Path) -> None:
    named = dataclasses.replace(alphabetical("a|b", 2), version="2")
    report = EvaluationReport(
        "log", "leave-one-out", 30, compare_models([("w", named), ("r", alphabetical("right", 1))], JUDGED)
    )
    text = markdown(report, pictures=True)
    header = next(line for line in text.splitlines() if line.startswith("| model"))
    rows = [line for line in text.splitlines() if "| right 1 |" in line or r"| a\|b 2 |" in line]
    assert [row.replace(r"\|", "").count("|") for row in rows] == [header.count("|")] * 2
    assert "| 1.0000 (1.0000–1.0000) | best |" in rows[0]
    assert "1.0000 (1.0000 to 1.0000), p = 0.002" in rows[1]
    assert "![Accuracy](comparison.png)" in text
    write_plots(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.png"]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(msgspec.json.encode(report))["models"][0]["figures"]["hr@10"]["mean"] == 1.0


def test_plots_that_cannot_be_written_are_an_error_of_ours(tmp_path: Path) -> None:
    standings = compare_models([("w", alphabetical("w", 2)), ("r", alphabetical("r", 1))], JUDGED)
    with pytest.raises(DataError, match=r"cannot write .*nowhere/comparison.png"):
        write_plots(EvaluationReport("log", "leave-one-out", 30, standings), tmp_path / "nowhere")
