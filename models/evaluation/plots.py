"""The plots of an evaluation, as PNG."""

from pathlib import Path

# The figure without pyplot: nothing global, and no display is looked for.
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.errors import DataError
from models.evaluation.comparison import Standing
from models.evaluation.diversity import Diversity
from models.evaluation.freshness import Freshness
from models.evaluation.frontier import FrontierPoint
from models.evaluation.metrics import Interval
from models.evaluation.prequential import Bucket, Replay
from models.evaluation.report import EvaluationReport


def write_plots(report: EvaluationReport, directory: Path) -> None:
    """Draw every part of a report that has a plot, under the names that its tables give.

    Raises:
        DataError: A file cannot be written.
    """
    figures = {}
    if len(report.models) > 1:
        figures["comparison.png"] = _comparison(report.models)
    if report.replay is not None:
        figures["prequential.png"] = _replay(report.replay)
    if report.freshness is not None:
        figures["freshness.png"] = _freshness(report.freshness)
    if report.diversity is not None:
        figures["popularity_lift.png"] = _popularity_lift(report.diversity)
    if report.frontier is not None:
        figures["frontier.png"] = _frontier(report.frontier)
    for name, figure in figures.items():
        try:
            figure.savefig(directory / name, dpi=120)
        except OSError as error:
            raise DataError(
                f"cannot write {directory / name}: {error.strerror}. Check permissions and free space"
            ) from error


def _comparison(models: tuple[Standing, ...]) -> Figure:
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(models)), layout="constrained")
    axes = figure.subplots()
    found = [model.figures["ndcg@10"] for model in models]
    axes.barh(range(len(models)), [interval.mean for interval in found], xerr=_errors(found), capsize=3)
    axes.set_yticks(range(len(models)), [f"{model.name} {model.version}".strip() for model in models])
    axes.invert_yaxis()
    axes.set(xlabel="NDCG@10, 95 % intervals over users")
    return figure


def _replay(replay: Replay) -> Figure:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    over_time, by_known = figure.subplots(1, 2)
    for axes, buckets, label in (
        (over_time, replay.by_time, "from day"),
        (by_known, replay.by_known, "events known of the user"),
    ):
        _lines(axes, buckets)
        axes.set(xlabel=label, ylabel="each event predicted before it is seen", ylim=(0, None))
        axes.tick_params(axis="x", rotation=60)
        axes.legend()
    return figure


def _lines(axes: Axes, buckets: tuple[Bucket, ...]) -> None:
    labels = [bucket.label for bucket in buckets]
    for name, label in (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"), ("mrr@10", "MRR@10")):
        axes.plot(labels, [bucket.figures[name] for bucket in buckets], marker=".", label=label)


def _freshness(freshness: Freshness) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    found = [line.figures["ndcg@10"] for line in freshness.lines]
    hidden = [line.hidden for line in freshness.lines]
    axes.errorbar(hidden, [interval.mean for interval in found], _errors(found), marker="o", capsize=3)
    axes.set_xticks(hidden)
    axes.set(
        xlabel="newest events that the model has not seen",
        ylabel="NDCG@10, 95 % intervals over users",
        title=f"What freshness is worth ({freshness.users:,} users)",
        ylim=(0, None),
    )
    return figure


def _popularity_lift(diversity: Diversity) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    deciles = [decile.decile for decile in diversity.deciles]
    axes.bar(deciles, [decile.lift or 0.0 for decile in diversity.deciles])
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.set_xticks(deciles)
    axes.set(xlabel="tenth of the items, most popular first", ylabel="share of recommendations / share of interactions")
    return figure


def _frontier(frontier: tuple[FrontierPoint, ...]) -> Figure:
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    distance, calibration, entropy = figure.subplots(1, 3)
    for method in dict.fromkeys(point.method for point in frontier):
        points = [point for point in frontier if point.method == method]
        accuracy = [point.figures["ndcg@10"].mean for point in points]
        distance.plot([point.diversity.distance or 0.0 for point in points], accuracy, marker="o", label=method)
        entropy.plot([point.diversity.entropy_bits for point in points], accuracy, marker="o", label=method)
        topical = [point for point in points if point.diversity.miscalibration_nats is not None]
        calibration.plot(
            [point.diversity.miscalibration_nats or 0.0 for point in topical],
            [point.figures["ndcg@10"].mean for point in topical],
            marker="o",
            label=method,
        )
    for axes, label in (
        (distance, "intra-list distance (cosine)"),
        (calibration, "miscalibration, nats (left is better)"),
        (entropy, "entropy of exposure, bits"),
    ):
        axes.set(xlabel=label, ylabel="NDCG@10")
        axes.legend()
    return figure


def _errors(intervals: list[Interval]) -> list[list[float]]:
    """How far the intervals reach below and above their means, as matplotlib takes it; never below 0."""
    return [
        [max(0.0, interval.mean - interval.low) for interval in intervals],
        [max(0.0, interval.high - interval.mean) for interval in intervals],
    ]
