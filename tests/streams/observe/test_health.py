import pytest

from streams.observe.health import Health


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    """A service that has started and may be silent for 30 s."""
    health = Health(stall_s=30, clock=clock)
    health.started()
    return health


def test_a_service_that_has_not_started_is_live_but_not_ready() -> None:
    health = Health(stall_s=30)
    assert (health.ready().ok, health.ready().reasons) == (False, ("starting",))
    assert health.live().ok
    health.started()
    assert (health.ready().ok, health.ready().reasons) == (True, ())


def test_ready_names_everything_that_blocks_and_forgets_what_no_longer_does(health: Health) -> None:
    health.block("store", "Redis does not answer, tried 1 time")
    health.block("store", "Redis does not answer, tried 2 times")
    health.block("log", "no broker answers")
    assert health.ready().reasons == ("Redis does not answer, tried 2 times", "no broker answers")
    health.unblock("store")
    health.unblock("never blocked")
    assert health.ready().reasons == ("no broker answers",)
    health.unblock("log")
    assert health.ready().ok


def test_lag_without_progress_for_longer_than_the_stall_time_is_not_live(health: Health, clock: Clock) -> None:
    health.lag(1234)
    clock.now_s += 30
    assert health.live().ok
    clock.now_s += 1
    assert not health.live().ok
    assert health.live().reasons == ("no progress for 31 s with 1,234 waiting (allowed: 30 s)",)
    assert health.ready().ok


def test_lag_with_progress_is_live_however_long_it_lasts(health: Health, clock: Clock) -> None:
    health.lag(5)
    for _ in range(10):
        clock.now_s += 29
        health.progress()
        health.lag(5)
        assert health.live().ok


def test_telling_the_lag_again_is_no_progress(health: Health, clock: Clock) -> None:
    for waiting in (5, 6, 7, 8):
        health.lag(waiting)
        clock.now_s += 10
    assert not health.live().ok


def test_the_first_event_after_an_idle_night_is_no_stall(health: Health, clock: Clock) -> None:
    health.lag(1)
    health.progress()
    health.lag(0)
    clock.now_s += 8 * 3600
    assert health.live().ok
    health.lag(1)
    assert health.live().ok
    clock.now_s += 31
    assert not health.live().ok


def test_a_stall_ends_with_the_next_batch(health: Health, clock: Clock) -> None:
    health.lag(1)
    clock.now_s += 31
    assert not health.live().ok
    health.progress()
    assert health.live().ok


def test_waiting_for_something_known_is_no_stall_and_the_stall_time_starts_again_after_it(
    health: Health, clock: Clock
) -> None:
    health.lag(1)
    clock.now_s += 20
    health.block("store", "Redis does not answer")
    clock.now_s += 3600
    assert health.live().ok
    assert not health.ready().ok
    health.unblock("store")
    clock.now_s += 30
    assert health.live().ok
    clock.now_s += 1
    assert not health.live().ok
