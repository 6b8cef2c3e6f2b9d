"""Erasing a user: asking for it in the log, and seeing it done."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from streams.contracts.erasure import Erasures
from streams.contracts.event import ERASE
from streams.contracts.frame import partition_of
from streams.errors import DriftlineError, StateRefused
from streams.interest.window import InvalidState, decode_state
from streams.settings import RedisSettings
from streams.store.protocol import ErasureStore
from streams.store.redis import RedisGenerations, RedisStore

_POLL_S: Final = 0.2

Rows = Mapping[str, frozenset[str]]
"""Of each generation that has a row of a user the ids of the events in its window."""


class StillThere(DriftlineError):
    """A row was not gone in time."""


class Erased(Struct, frozen=True):
    """What `driftline erase` did, or would do.

    Attributes:
        user_digest: What stands for the user in the log and in what is recorded.
        generations: That have, or had, a row.
        topic: Where the event goes.
        erased_at: Milliseconds since 1970; None in a dry run.
    """

    executed: bool
    user_digest: str
    generations: list[str]
    topic: str
    erased_at: int | None


class EventSink(Protocol):
    """Where the event goes; `streams.log.producer.Producer` is one."""

    def send(self, topic: str, value: bytes | None, key: bytes | str | None = None, *, timestamp_ms: int = 0) -> None:
        """Hand over a message."""

    def flush(self) -> None:
        """Wait until it is acknowledged; raises `DeliveryFailed`."""


def rows_of(settings: RedisSettings, user_id: str) -> Rows:
    """The rows of a user in every generation that is recorded or served.

    Raises:
        StoreUnavailable, AuthenticationFailed: Redis does not answer.
        StateRefused: A row cannot be read.
    """
    with closing(RedisGenerations(settings)) as generations:
        names = {generation.name for generation in generations.all()} | {generations.serving().generation}
    found = {}
    for name in sorted(names):
        with closing(RedisStore(settings, name)) as store:
            partitions = store.partitions()
            if partitions is None:
                continue
            partition = partition_of(user_id, partitions)
            state = store.read_rows({partition: [user_id]})[partition].rows[0].state
        if state is not None:
            found[name] = frozenset(_ids(state, name))
    return found


def ask_for_erasure(sink: EventSink, erasures: ErasureStore, topic: str, sent_as: str, user_id: str) -> int:
    """Record the erasure, so that nothing older comes back, and send the event that ends the window at its place.

    Args:
        sent_as: The id as apps send it.
        user_id: The id as rows have it.

    Returns:
        When the user was erased, milliseconds since 1970.

    Raises:
        DeliveryFailed: Kafka did not take the event. Ask again: what is recorded does no harm.
    """
    erased_ms = round(time.time() * 1000)
    asked = Erasures()
    asked.add(user_id, erased_ms)
    erasures.record(asked)
    event = msgspec.json.encode({"user_id": sent_as, "type": ERASE, "event_time": erased_ms})
    sink.send(topic, event, sent_as, timestamp_ms=erased_ms)
    sink.flush()
    return erased_ms


def wait_until_gone(
    before: Rows,
    rows: Callable[[], Rows],
    timeout_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until no generation holds anything of what it held before; a window that began anew since may be there.

    Args:
        before: The rows before the event was sent.
        rows: Asks for those of now.

    Raises:
        StillThere: One was not gone in time.
    """
    deadline = clock() + timeout_s
    while left := _left(before, rows()):
        if clock() > deadline:
            raise StillThere(
                f"the erasure is recorded and in the log, but after {timeout_s:g} s generation {', '.join(left)} still has "
                "the row: no ingest or evolve has come to it. Start them, or wait: `driftline status` shows the lag. "
                "The row goes when they come to it; there is no need to ask again"
            )
        sleep(_POLL_S)


def _left(before: Rows, now: Rows) -> list[str]:
    return [name for name, ids in before.items() if ids & now.get(name, frozenset())]


def _ids(state: bytes, generation: str) -> Iterable[str]:
    try:
        return decode_state(state).ids
    except InvalidState as error:
        raise StateRefused(
            f"the user's row in generation {generation} can't be read: {error}. It was not written by this version; upgrade, "
            "or delete that key"
        ) from error
