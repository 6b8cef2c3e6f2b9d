"""A picture of a log."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from models.data.events import Log, UserSequence, item_counts
from models.errors import DataError, MissingExtra

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BINS = 60


def plot_log(log: Log, sequences: Sequence[UserSequence], out: Path) -> None:
    """Draw item popularity by rank, events per user and, where there are times, events over time.

    Args:
        log: At least one event.
        sequences: Its users' events.
        out: The file; its ending says the format, such as .png.

    Raises:
        MissingExtra: matplotlib is not installed.
        DataError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - only pictures need it
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("train", "matplotlib") from error

    # A figure of its own, not pyplot's: no state of the process, no window, no display.
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    popularity, activity, history = figure.subplots(1, 3)

    counts = np.fromiter(item_counts(sequences).values(), np.int64)
    popularity.loglog(np.arange(1, len(counts) + 1), counts)
    popularity.set(title="Item popularity", xlabel="rank", ylabel="events")

    lengths = np.fromiter(map(len, sequences), np.int64)
    edges = np.unique(np.geomspace(lengths.min(), lengths.max() + 1, _BINS).astype(np.int64))
    activity.hist(lengths, bins=edges)
    activity.set(title="Events per user", xlabel="events", ylabel="users", xscale="log")

    if log.timed:
        times = np.fromiter((event.time_ms for event in log.events), np.int64)
        amounts, borders = np.histogram(times, bins=_BINS)
        history.stairs(amounts, [_EPOCH + timedelta(milliseconds=border) for border in borders], fill=True)
        history.tick_params(axis="x", rotation=30)
    else:
        history.text(0.5, 0.5, "the log has no times", ha="center", va="center", transform=history.transAxes)
    history.set(title="Events over time", ylabel="events")
    try:
        figure.savefig(out, dpi=120)
    except (OSError, ValueError) as error:  # matplotlib's error for an ending that it does not know
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"cannot write {out}: {reason}. Name a .png file in a folder of yours") from error
