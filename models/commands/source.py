"""Which log a command reads, and what of it is held out."""

from collections.abc import Sequence
from enum import StrEnum

from models.data.events import Log, UserSequence
from models.data.readers import LogFormat, read_events
from models.data.splits import Split, global_time, leave_one_out
from models.synthetic import LogPlan, generate_log

SYNTHETIC = "synthetic"
"""What `--data` says for a log that is generated."""


class SplitName(StrEnum):
    """How events are held out."""

    leave_one_out = "leave-one-out"
    global_time = "global-time"


def read_log(data: str, data_format: LogFormat, min_rating: float | None, generated: LogPlan) -> Log:
    """The log that `--data` names.

    Raises:
        DataError: It cannot be read.
    """
    return Log(list(generate_log(generated))) if data == SYNTHETIC else read_events(data, data_format, min_rating)


def split_log(sequences: Sequence[UserSequence], split: SplitName, *, timed: bool) -> Split:
    """What is learned from, what chooses the epoch, and what tests.

    Raises:
        DataError: A split by time of a log without times.
    """
    return global_time(sequences, timed=timed) if split is SplitName.global_time else leave_one_out(sequences)
