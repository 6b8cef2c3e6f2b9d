"""Users as people and exports read them."""

import math
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from models.bundle import read_bundle
from models.errors import BundleError
from streams.contracts.recommendation import Recommendation, Trigger, decode_recommendation
from streams.errors import StateRefused, UsageError
from streams.interest.window import InvalidState, UserState, decode_state
from streams.services.parts import DEMO_BUNDLE
from streams.settings import Settings
from streams.store.protocol import StateStore, UserRecord

_DIGEST_BYTES: Final = 16


class UnknownUser(UsageError):
    """There is no row of this user: never seen, or expired."""

    exit_code = 1


class WindowEvent(Struct, frozen=True):
    """One event of a window. ``event_time`` is in milliseconds since 1970."""

    item_id: str
    type: str
    event_time: int
    event_id: str


class ExportedUser(Struct, frozen=True):
    """A user as `driftline users export` writes it, in every format.

    Attributes:
        window: Oldest first.
        vector: float32, as it is in Redis.
        model: The version of the model that the vector belongs to.
        updated_at: Milliseconds since 1970.
    """

    user_id: str
    window: list[WindowEvent]
    vector: list[float]
    recommendations: Recommendation
    model: str
    updated_at: int


class ShownEvent(WindowEvent, frozen=True):
    """One event of a window, with the item's title if the configured bundle is the one of the row."""

    title: str | None = None


class ShownItem(Struct, frozen=True):
    """One recommended item; ``title`` as in `ShownEvent`."""

    rank: int
    item_id: str
    title: str | None
    score: float | None
    because: list[str]


class ShownUser(Struct, frozen=True):
    """A user as `driftline users show` prints it.

    Attributes:
        drift: Cosine distance of the vector to the one before it; None for the first.
        window: Oldest first.
        recommendations: Best first.
        generated_at: When the recommendations were, in milliseconds since 1970.
    """

    user_id: str
    partition: int
    model: str
    updated_at: int
    vector_dim: int
    vector_norm: float
    drift: float | None
    window: list[ShownEvent]
    recommendation_id: str
    strategy: str
    generated_at: int
    trigger: Trigger
    recommendations: list[ShownItem]


def show_user(settings: Settings, store: StateStore, user_id: str) -> ShownUser:
    """One user's row, for people.

    Raises:
        UnknownUser: There is none.
    """
    record = store.read_user(user_id)
    if record is None:
        raise UnknownUser(
            f"there is no user {user_id!r} in Redis at {settings.redis.masked_url}, generation "
            f"{settings.redis.generation}: none of its events was applied, or none for {settings.redis.ttl_days:g} "
            "days (redis.ttl_days). `driftline status` shows what waits to be applied"
        )
    row = record.row
    state, recommendation = _state(record), _recommendation(record)
    titles = item_titles(settings, row.model)
    vector = np.frombuffer(row.vector, "<f4")
    return ShownUser(
        user_id,
        record.partition,
        row.model,
        row.updated_at,
        len(vector),
        math.sqrt(float(vector.astype(np.float64) @ vector.astype(np.float64))),
        recommendation.vector.drift,
        [
            ShownEvent(event.item_id, event.type, event.event_time, event.event_id, titles.get(event.item_id))
            for event in _window(state)
        ],
        recommendation.recommendation_id,
        recommendation.strategy,
        recommendation.generated_at,
        recommendation.trigger,
        [
            ShownItem(item.rank, item.item_id, titles.get(item.item_id), item.score, item.because)
            for item in recommendation.items
        ],
    )


def item_titles(settings: Settings, model_version: str) -> Mapping[str, str]:
    """Titles by item id, if the configured bundle is of this version; else none: another model's may differ."""
    try:
        bundle = read_bundle(settings.model.bundle or DEMO_BUNDLE)
    except BundleError:
        return {}  # `driftline doctor` says why
    if bundle.config.version != model_version:
        return {}
    return {item_id: metadata.title for item_id, metadata in bundle.metadata.items()}


def each_user(records: Iterable[UserRecord]) -> Iterator[ExportedUser]:
    """Every user once, as an export has it.

    A scan of Redis may give a row twice while the keyspace grows; the second is dropped. A digest of every id is
    remembered for that, about 100 bytes a user whatever the length of ids: 1 GB for ten million.
    """
    seen: set[bytes] = set()
    for record in records:
        digest = blake2b(record.user_id.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in seen:
            continue
        seen.add(digest)
        row = record.row
        vector: list[float] = np.frombuffer(row.vector, "<f4").tolist()
        yield ExportedUser(
            record.user_id, _window(_state(record)), vector, _recommendation(record), row.model, row.updated_at
        )


def _window(state: UserState) -> list[WindowEvent]:
    return list(map(WindowEvent, state.items, state.types, state.times, state.ids))


def _state(record: UserRecord) -> UserState:
    try:
        return decode_state(record.row.state)
    except InvalidState as error:
        raise _unreadable(record, error) from error


def _recommendation(record: UserRecord) -> Recommendation:
    try:
        return decode_recommendation(record.row.recommendations)
    except msgspec.DecodeError as error:
        raise _unreadable(record, error) from error


def _unreadable(record: UserRecord, error: Exception) -> StateRefused:
    return StateRefused(
        f"the row of user {record.user_id!r} in the store can't be read: {error}. It was not written by this version; "
        "upgrade, or delete that key (its window then starts anew)"
    )
