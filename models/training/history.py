"""The history of a training: as CSV and JSON for programs, as curves for people."""

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.errors import DataError
from models.training.plan import EpochReport

HISTORY_CSV, HISTORY_JSON, CURVES = "history.csv", "history.json", "curves.png"


def write_history(directory: Path, history: Sequence[EpochReport]) -> None:
    """Write history.csv, history.json and curves.png into a directory.

    Raises:
        DataError: It cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / HISTORY_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(history), indent=2))
        _write_csv(directory / HISTORY_CSV, history)
        _plot(directory / CURVES, history)
    except OSError as error:
        raise DataError(f"cannot write the history into {directory}: {error}. Check permissions and space") from error


def _write_csv(path: Path, history: Sequence[EpochReport]) -> None:
    lines = [_flat(report) for report in history]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)


def _flat(report: EpochReport) -> dict[str, float]:
    line: dict[str, float] = {}
    for name, value in msgspec.structs.asdict(report).items():
        if isinstance(value, dict):
            line.update({f"{name}_{figure}": number for figure, number in value.items()})
        elif value is not None:
            line[name] = value
    return line


def _plot(path: Path, history: Sequence[EpochReport]) -> None:
    # The figure without pyplot: nothing global, and no display is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [report.epoch for report in history]
    judged = [report for report in history if report.validation is not None]
    losses.plot(epochs, [report.loss for report in history], label="training (mean over the epoch, with dropout)")
    for name, figures in (("learned events", "training"), ("validation", "validation")):
        at = [(report.epoch, found) for report in judged if (found := getattr(report, figures)) is not None]
        if at and "loss" in at[0][1]:
            losses.plot([epoch for epoch, _ in at], [found["loss"] for _, found in at], label=name)
        accuracy.plot(
            [epoch for epoch, _ in at], [found["ndcg@10"] for _, found in at], marker="o", label=f"NDCG@10, {name}"
        )
        accuracy.plot(
            [epoch for epoch, _ in at], [found["hr@10"] for _, found in at], linestyle="--", label=f"recall@10, {name}"
        )
    for best in [report for report in judged if report.best][-1:]:
        accuracy.axvline(best.epoch, color="grey", linewidth=1, label=f"best epoch, {best.epoch}")
    losses.set(title="Cross-entropy over unseen items", xlabel="epoch", ylabel="nats")
    accuracy.set(title="Accuracy, one target a user", xlabel="epoch")
    for axes in (losses, accuracy):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
