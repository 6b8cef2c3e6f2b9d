import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.bundle import read_bundle
from models.commands.evaluate import evaluate
from models.commands.results import Output
from models.commands.source import SplitName
from models.commands.train import train
from models.data.events import LoggedEvent, user_sequences
from models.data.splits import leave_one_out
from models.errors import BundleError, DataError
from models.evaluation.onnx_runtime import read_recommender
from models.synthetic import LogPlan, generate_log
from models.windows import window_inputs

DEMO = Path(__file__).parents[3] / "streams" / "demo" / "bundle"
PLAN = LogPlan(users=60, events=16, drift=0.5, seed=1)
PLOTS = {"prequential.png", "freshness.png", "popularity_lift.png", "frontier.png"}


def write_log(path: Path, events: list[LoggedEvent]) -> str:
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "user_id": event.user_id,
                    "item_id": event.item_id,
                    "type": event.type,
                    "event_time": event.time_ms,
                    "event_id": event.event_id,
                }
            )
            for event in events
        )
    )
    return str(path)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("logs") / "log.jsonl", list(generate_log(PLAN)))


def test_a_bundle_is_judged_on_the_last_event_of_every_user(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([DEMO], log, output=Output.json)
    report = json.loads(capsys.readouterr().out)
    assert (report["users"], report["split"]) == (60, "leave-one-out")
    # The same by one user after the other.
    model = read_recommender(DEMO)
    hits = 0
    judged = leave_one_out(user_sequences(generate_log(PLAN))).test
    for context, target in zip(judged.contexts, judged.targets, strict=True):
        scores = (model.encode(window_inputs([context], model.vocabulary, model.types, 50)) @ model.item_vectors.T)[0]
        row = model.vocabulary.rows[target]
        better = sum(
            scores[other] >= scores[row]
            for item_id, other in model.vocabulary.rows.items()
            if item_id not in context.items and other != row
        )
        hits += better < 10
    assert report["models"][0]["figures"]["hr@10"]["mean"] == pytest.approx(hits / 60)
    assert report["models"][0]["users_per_second"]["200"] is None
    assert (report["replay"], report["freshness"], report["diversity"], report["frontier"]) == (None,) * 4


def test_everything_at_once_is_printed_and_written(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    evaluate(
        [DEMO], log, split=SplitName.global_time, prequential=True, freshness=True, diversity=True, frontier=True,
        out=out,
    )  # fmt: skip
    printed = capsys.readouterr().out
    titles = (
        "Accuracy", "Prequential, over time", "Prequential, by events known", "Freshness", "Diversity",
        "Popularity lift", "Accuracy against diversity",
    )  # fmt: skip
    assert all(title in printed for title in titles)
    assert {path.name for path in out.iterdir()} == {"evaluation.md", "evaluation.json"} | PLOTS
    text = (out / "evaluation.md").read_text()
    assert all(f"## {title}\n" in text and f"]({plot})" in text for title in titles for plot in PLOTS)
    report = json.loads((out / "evaluation.json").read_text())
    assert report["split"] == "global-time"
    assert report["replay"]["events"] == 96  # the newest tenth of 960 events
    assert [line["hidden"] for line in report["freshness"]["lines"]] == [0, 1, 2, 3, 5, 10]
    assert len(report["frontier"]) == 21


def test_a_replay_begins_at_the_time_given_and_may_be_sampled(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    times = sorted(event.time_ms for event in generate_log(PLAN))
    evaluate([DEMO], log, prequential=True, start=str(times[-100]), output=Output.json)
    assert json.loads(capsys.readouterr().out)["replay"]["events"] == 100
    evaluate([DEMO], log, prequential=True, start="2026-01-01T00:00:00Z", sample=50, output=Output.json)
    assert json.loads(capsys.readouterr().out)["replay"]["events"] == 50


def test_models_are_compared_in_one_table(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([DEMO, DEMO], log, compare=True, out=tmp_path)
    assert capsys.readouterr().out.count(read_bundle(DEMO).config.version) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.md", "evaluation.json", "comparison.png"}
    first, second = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    assert first["behind"] is None
    assert (second["behind"]["interval"]["mean"], second["behind"]["p_value"]) == (0.0, 1.0)


def test_a_checkpoint_is_judged_as_training_judged_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.jsonl", list(generate_log(LogPlan(users=20, events=8, drift=0.5, seed=2))))
    train(out=tmp_path / "checkpoint", data=log, epochs=1, settings=["dim=8"], window_max=9, output=Output.json)
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    evaluate([tmp_path / "checkpoint"], log, output=Output.json)
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert found["figures"]["ndcg@10"]["mean"] == pytest.approx(trained["ndcg@10"])
    assert found["size_bytes"] == (tmp_path / "checkpoint" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": [DEMO, DEMO]}, "2 models were given. Add --compare"),
        ({"compare": True, "freshness": True}, "--compare makes one table"),
        ({"prequential": True, "start": "yesterday"}, "--start yesterday is no time"),
        ({"prequential": True, "start": "2026-01-01T00:00:00"}, "has no offset. Write it as 2026-01-01T00:00:00Z"),
        ({"prequential": True, "start": "2050-01-01T00:00:00Z"}, r"no event is at 2050-01-01T00:00:00\+00:00 or later"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_remedy(
    log: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(**({"models": [DEMO], "data": log} | options))  # type: ignore[arg-type]


def test_a_log_without_times_cannot_be_replayed(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("1 2\n1 3\n1 4\n2 2\n2 3\n2 4\n")
    with pytest.raises(DataError, match="has no times, so it cannot be replayed"):
        evaluate([DEMO], str(pairs), prequential=True)


def test_a_log_of_other_items_and_one_with_nobody_to_judge_are_named(tmp_path: Path) -> None:
    other = [LoggedEvent("ana", f"film-{number}", "click", number, f"{number}") for number in range(5)]
    with pytest.raises(DataError, match=r"'sasrec-demo' knows none of the items of the data.*'film-4'"):
        evaluate([DEMO], write_log(tmp_path / "other.jsonl", other))
    with pytest.raises(DataError, match="no user has three events"):
        evaluate([DEMO], write_log(tmp_path / "short.jsonl", other[:2]))


def test_what_is_no_model_is_named(log: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no model bundle"):
        evaluate([tmp_path], log)


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the directory"):
        evaluate([DEMO], "nowhere.jsonl", out=tmp_path / "file")


def test_without_torch_and_matplotlib_a_bundle_is_evaluated_and_plots_name_the_extra(log: str, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["matplotlib"] = None
from pathlib import Path
from models.bundle import read_bundle
from models.commands.evaluate import evaluate
from models.errors import MissingExtra
evaluate([Path({str(DEMO)!r})], {log!r}, freshness=True)
(Path({str(tmp_path)!r}) / "checkpoint.json").write_text("")
for model, out in (({str(DEMO)!r}, Path({str(tmp_path)!r}) / "out"), ({str(tmp_path)!r}, None)):
    try:
        evaluate([Path(model)], {log!r}, out=out)
    except MissingExtra as error:
        print(error.exit_code, error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert "Freshness" in run.stdout
    assert lines[-2].startswith("6 matplotlib is not installed")
    assert "driftline[train]" in lines[-2]
    assert lines[-1].startswith("6 torch is not installed")
