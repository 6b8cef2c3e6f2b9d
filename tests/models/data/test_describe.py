from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.describe import Spread, describe_log, gini
from models.data.events import Log, LoggedEvent, user_sequences
from models.data.plot import plot_log
from models.errors import DataError


def small_log(*, timed: bool = True) -> Log:
    """u: a at 0 s, b at 10 s, a at 10 s; v: a at 100 s."""
    return Log(
        [
            LoggedEvent("u", "a", "click", 0, "1"),
            LoggedEvent("u", "b", "view", 10_000, "2"),
            LoggedEvent("u", "a", "click", 10_000, "3"),
            LoggedEvent("v", "a", "click", 100_000, "4"),
        ],
        timed,
        repeats=5,
    )


def spread(found: Spread) -> tuple[float, float, float, float]:
    return found.min, found.median, found.p90, found.max


def test_a_small_log_is_described_by_figures_worked_out_by_hand() -> None:
    log = small_log()
    found = describe_log(log, user_sequences(log.events))
    assert (found.users, found.items, found.events) == (2, 2, 4)
    assert found.density == 3 / 4  # (u, a), (u, b), (v, a) of four pairs
    assert list(found.types.items()) == [("click", 3), ("view", 1)]
    assert (found.one_event_users, found.repeats) == (1, 5)
    assert found.returns == 1 / 4  # u's second a
    assert found.ties == 1 / 4
    # Of three events and of one, and of gaps of ten seconds and of none: nine tenths of the way between the two.
    assert spread(found.events_per_user) == pytest.approx((1, 2, 2.8, 3))
    assert (found.first_ms, found.last_ms) == (0, 100_000)
    assert found.gap_seconds is not None
    assert spread(found.gap_seconds) == pytest.approx((0, 5, 9, 10))
    assert (found.top_1_percent, found.top_10_percent) == (3 / 4, 3 / 4)  # one item at least
    assert found.gini == pytest.approx(1 / 4)  # of 3 and 1: half the mean difference 1, over the mean 2


def test_without_times_nothing_is_said_of_them() -> None:
    log = small_log(timed=False)
    found = describe_log(log, user_sequences(log.events))
    assert (found.ties, found.first_ms, found.last_ms, found.gap_seconds) == (None, None, None, None)


def test_users_of_one_event_have_no_gaps() -> None:
    log = Log([LoggedEvent("u", "a", "click", 5, "1")])
    found = describe_log(log, user_sequences(log.events))
    assert found.gap_seconds is None
    assert (found.first_ms, found.last_ms, found.gini) == (5, 5, 0.0)


def test_the_most_popular_tenth_is_a_tenth_of_the_items() -> None:
    # Twenty items: two with 10 events, eighteen with one.
    events = [LoggedEvent("u", f"i{n}", "click", 0, f"{n}-{k}") for n in range(20) for k in range(10 if n < 2 else 1)]
    found = describe_log(Log(events), user_sequences(events))
    assert found.top_10_percent == 20 / 38
    assert found.top_1_percent == 10 / 38


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_gini_is_half_the_mean_difference_over_the_mean(counts: list[int]) -> None:
    # The definition, pair by pair; the code uses a formula for sorted values.
    difference = np.mean([abs(a - b) for a in counts for b in counts])
    assert gini(np.array(counts, np.int64)) == pytest.approx(difference / (2 * np.mean(counts)), abs=1e-12)


@pytest.mark.parametrize("timed", [True, False])
def test_a_log_is_drawn_into_a_picture(tmp_path: Path, timed: bool) -> None:
    log = small_log(timed=timed)
    out = tmp_path / "log.png"
    plot_log(log, user_sequences(log.events), out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    log = Log([LoggedEvent("u", "a", "click", 5, "1")])
    sequences = user_sequences(log.events)
    with pytest.raises(DataError, match=r"cannot write .*none/log\.png: No such file"):
        plot_log(log, sequences, tmp_path / "none" / "log.png")
    with pytest.raises(DataError, match=r"cannot write .*log\.docx"):
        plot_log(log, sequences, tmp_path / "log.docx")
