"""Everything that an evaluation found, as tables for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.evaluation.comparison import LENGTHS, Standing
from models.evaluation.diversity import Diversity
from models.evaluation.freshness import Freshness
from models.evaluation.frontier import FrontierPoint
from models.evaluation.metrics import Difference, Interval
from models.evaluation.prequential import Bucket, Replay, Seen


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found; what was not asked for is None.

    Attributes:
        data: The log.
        split: How events were held out.
        users: Users judged.
        models: Best NDCG@10 first.
        replay: Every event predicted before the model saw it.
        freshness: Accuracy with the newest events hidden.
        diversity: Of top-10 lists.
        frontier: Accuracy against diversity.
    """

    data: str
    split: str
    users: int
    models: tuple[Standing, ...]
    replay: Replay | None = None
    freshness: Freshness | None = None
    diversity: Diversity | None = None
    frontier: tuple[FrontierPoint, ...] | None = None


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table and what must be known to read it.

    Attributes:
        title: What it shows.
        note: How it was measured.
        columns: Their names.
        rows: Cells as people read them.
        picture: The file of its plot, where it has one.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    picture: str | None = None


def report_tables(report: EvaluationReport) -> list[ReportTable]:
    """The report as tables."""
    tables = [_accuracy(report)]
    if report.replay is not None:
        tables += _replay(report.replay)
    if report.freshness is not None:
        tables.append(_freshness(report.freshness))
    if report.diversity is not None:
        tables += _diversity(report.diversity)
    if report.frontier is not None:
        tables.append(_frontier(report.frontier))
    return tables


def markdown(report: EvaluationReport, pictures: bool) -> str:
    """The report as Markdown.

    Args:
        report: What was found.
        pictures: Whether the plots lie beside it.
    """
    parts = [f"# Evaluation on {_cell(report.data)}"]
    for table in report_tables(report):
        parts.append(f"## {table.title}\n\n{table.note}")
        lines = [table.columns, ("---", *["--:"] * (len(table.columns) - 1)), *table.rows]
        parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
        if pictures and table.picture:
            parts.append(f"![{table.title}]({table.picture})")
    return "\n\n".join(parts) + "\n"


def _accuracy(report: EvaluationReport) -> ReportTable:
    several = len(report.models) > 1
    rows = []
    for model in report.models:
        cells = [f"{model.name} {model.version}".strip()]
        cells += [_interval(model.figures[name]) for name in ("hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20")]
        if several:
            cells.append("best" if model.behind is None else _difference(model.behind))
        cells += [f"{model.items:,}", f"{model.size_bytes:,}"]
        cells += [_speed(model.users_per_second[length]) for length in LENGTHS]
        rows.append(tuple(cells))
    unknown = max(model.unknown_targets for model in report.models)
    note = (
        f"{report.split} split, {report.users:,} users. All items are ranked; those that the user had touched before are "
        "left out, the target never. In brackets: 95 % bootstrap intervals over users. HR@k is Recall@k: one item is "
        "relevant."
    )
    if several:
        note += " Behind the best: NDCG@10, paired bootstrap on the same users, p two-sided and not adjusted."
    if unknown:
        note += f" Targets that a model does not know count as missed: up to {unknown:.1%}."
    return ReportTable(
        title="Accuracy",
        note=note,
        columns=(
            "model", "HR@10", "NDCG@10", "MRR@10", "HR@20", "NDCG@20",
            *(["behind the best"] if several else []), "items", "bytes", *(f"users/s, L = {length}" for length in LENGTHS),
        ),
        rows=tuple(rows),
        picture="comparison.png" if several else None,
    )  # fmt: skip


def _replay(replay: Replay) -> list[ReportTable]:
    left_out = "in the window" if replay.seen is Seen.window else "touched before"
    note = (
        f"{replay.events:,} events of {replay.users:,} users from {replay.start}, each predicted before the model saw it, "
        f"from the window that live serving had then; items that the user had {left_out} are left out. What the model "
        "was trained on it should know: start after its training data."
    )
    if replay.seen is Seen.window:
        note = note.replace("the user had in the window", "are in the window")
    columns = ("HR@10", "NDCG@10", "MRR@10")
    names = ("hr@10", "ndcg@10", "mrr@10")

    def lines(buckets: Sequence[Bucket]) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (bucket.label, f"{bucket.events:,}", *(f"{bucket.figures[name]:.4f}" for name in names))
            for bucket in buckets
        )

    over_all = ("all", f"{replay.events:,}", *(_interval(replay.figures[name]) for name in names))
    return [
        ReportTable(
            "Prequential, over time", note, ("from day", "events", *columns), (over_all, *lines(replay.by_time)),
            "prequential.png",
        ),
        ReportTable(
            "Prequential, by events known", "The same events, by how many of the user came before.",
            ("events known", "events", *columns), lines(replay.by_known),
        ),
    ]  # fmt: skip


def _freshness(freshness: Freshness) -> ReportTable:
    return ReportTable(
        title="Freshness",
        note=(
            f"The newest events before the target are hidden from the model; the same {freshness.users:,} users in every "
            "line. Items of hidden events are left out of the ranking all the same, so that only the vector is stale."
        ),
        columns=("events hidden", "HR@10", "NDCG@10", "MRR@10", "NDCG@10 lost"),
        rows=tuple(
            (
                str(line.hidden),
                *(_interval(line.figures[name]) for name in ("hr@10", "ndcg@10", "mrr@10")),
                _difference(line.lost) if line.hidden else "–",
            )
            for line in freshness.lines
        ),
        picture="freshness.png",
    )


def _diversity(diversity: Diversity) -> list[ReportTable]:
    return [
        ReportTable(
            title="Diversity",
            note="Of the 10 best items of every user.",
            columns=("measure", "value"),
            rows=(
                ("Shannon entropy of exposure, bits", f"{diversity.entropy_bits:.3f}"),
                ("Gini coefficient of exposure", f"{diversity.gini:.3f}"),
                ("catalogue coverage", f"{diversity.coverage:.1%}"),
                ("novelty, bits", f"{diversity.novelty_bits:.3f}"),
                ("intra-list distance, cosine", _optional(diversity.distance)),
                ("intra-list distance, Jaccard of topics", _optional(diversity.topic_distance)),
                ("miscalibration against the window's topics, nats", _optional(diversity.miscalibration_nats)),
            ),
        ),
        ReportTable(
            title="Popularity lift",
            note="Tenths of the items by interactions in the training data, most popular first.",
            columns=("decile", "of interactions", "of recommendations", "lift"),
            rows=tuple(
                (
                    str(decile.decile),
                    f"{decile.interactions:.1%}",
                    f"{decile.recommendations:.1%}",
                    _optional(decile.lift),
                )
                for decile in diversity.deciles
            ),
            picture="popularity_lift.png",
        ),
    ]


def _frontier(frontier: tuple[FrontierPoint, ...]) -> ReportTable:
    return ReportTable(
        title="Accuracy against diversity",
        note=(
            "Top-10 lists re-ranked out of the 100 best items of every user. A target that the user had touched before "
            "counts as missed, for it is not recommended."
        ),
        columns=(
            "method", "trade-off", "HR@10", "NDCG@10", "distance", "topic distance", "miscalibration", "coverage",
            "entropy", "Gini", "novelty",
        ),
        rows=tuple(
            (
                point.method,
                f"{point.trade_off:g}",
                _interval(point.figures["hr@10"]),
                _interval(point.figures["ndcg@10"]),
                _optional(point.diversity.distance),
                _optional(point.diversity.topic_distance),
                _optional(point.diversity.miscalibration_nats),
                f"{point.diversity.coverage:.1%}",
                f"{point.diversity.entropy_bits:.3f}",
                f"{point.diversity.gini:.3f}",
                f"{point.diversity.novelty_bits:.3f}",
            )
            for point in frontier
        ),
        picture="frontier.png",
    )  # fmt: skip


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.4f} ({interval.low:.4f}–{interval.high:.4f})"


def _difference(difference: Difference) -> str:
    interval = difference.interval
    return f"{interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f}), p = {difference.p_value:.3f}"


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _speed(users_per_second: float | None) -> str:
    return "–" if users_per_second is None else f"{users_per_second:,.0f}"


def _cell(text: str) -> str:
    """Names are an app's: none may end a cell or a line."""
    return text.replace("|", r"\|").replace("\n", " ")
