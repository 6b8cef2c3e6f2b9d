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
from streams.interest.explain import explain_list
from streams.interest.window import InvalidState, UserState, decode_state
from streams.services.bundle import bundle_path
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


class ExplainedEvent(ShownEvent, frozen=True):
    """One event of a window, with its age as the model was told it.

    Attributes:
        age_s: Seconds before the newest event that the model read; None where it did not read this one: it does not know
            the item, or does not look back so far.
    """

    age_s: float | None = None


class ExplainedItem(Struct, frozen=True):
    """One item, and how much each event of the window raised its score.

    Attributes:
        rank: Its place in the user's list; None where it is not in it.
        score: As the model gives it for the window as it is, without exploration; None where it read no event, for then
            nothing was scored.
        contributions: For each event of the window, in that order, how much lower the score would be without it.
    """

    rank: int | None
    item_id: str
    title: str | None
    score: float | None
    contributions: list[float]


class ExplainedUser(Struct, frozen=True):
    """A user's list as `driftline users explain` prints it.

    Attributes:
        window: Oldest first.
        items: Those of the list, best first, or the one that was asked about.
    """

    user_id: str
    model: str
    recommendation_id: str
    strategy: str
    window: list[ExplainedEvent]
    items: list[ExplainedItem]


def show_user(settings: Settings, store: StateStore, user_id: str) -> ShownUser:
    """One user's row, for people.

    Raises:
        UnknownUser: There is none.
    """
    record = _read(settings, store, user_id)
    row = record.row
    state, recommendation = state_of(record), recommendation_of(record)
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


def explain_user(settings: Settings, store: StateStore, user_id: str, item_id: str | None = None) -> ExplainedUser:
    """How much each event of a user's window contributed to each item of the list, or to one item whether in it or not.

    Raises:
        UnknownUser: There is no such user.
        UsageError: The settings name another model than the row's, or the model does not know the item.
        BundleError, EncoderFailed: The model cannot be loaded, or does not work here.
    """
    from streams.interest.encode import Encoder, open_scorer  # noqa: PLC0415 - to look at users takes no ONNX Runtime

    record = _read(settings, store, user_id)
    state, recommendation = state_of(record), recommendation_of(record)
    bundle = read_bundle(bundle_path(settings.model.bundle))
    if bundle.config.version != record.row.model:
        raise UsageError(
            f"the list of user {user_id!r} was made with model version {record.row.model}, and the bundle at "
            f"{bundle.path} is version {bundle.config.version}: name the other bundle with --bundle (model.bundle), or "
            "explain the user again after the next event, if evolve serves this one"
        )
    encoder = Encoder(bundle, settings.model.provider, settings.model.threads)
    scorer = open_scorer(bundle, settings.model.provider, settings.model.threads)
    ranks = {item.item_id: item.rank for item in recommendation.items}
    items = list(ranks) if item_id is None else [item_id]
    found = explain_list(bundle, encoder.encode, state, items, None if scorer is None else scorer.score)
    newest_ms = max((time for time, read in zip(state.times, found.read, strict=True) if read), default=0)
    titles = {known: metadata.title for known, metadata in bundle.metadata.items()}
    return ExplainedUser(
        user_id,
        record.row.model,
        recommendation.recommendation_id,
        recommendation.strategy,
        [
            ExplainedEvent(
                event.item_id,
                event.type,
                event.event_time,
                event.event_id,
                titles.get(event.item_id),
                (newest_ms - event.event_time) / 1000 if read else None,
            )
            for event, read in zip(_window(state), found.read, strict=True)
        ],
        [
            ExplainedItem(ranks.get(item), item, titles.get(item), score if found.read.any() else None, contributions)
            for item, score, contributions in zip(
                items, found.scores.tolist(), found.contributions.tolist(), strict=True
            )
        ],
    )


def item_titles(settings: Settings, model_version: str) -> Mapping[str, str]:
    """Titles by item id, if the configured bundle is of this version; else none: another model's may differ."""
    try:
        bundle = read_bundle(bundle_path(settings.model.bundle))
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
            record.user_id, _window(state_of(record)), vector, recommendation_of(record), row.model, row.updated_at
        )


def _read(settings: Settings, store: StateStore, user_id: str) -> UserRecord:
    record = store.read_user(user_id)
    if record is None:
        raise UnknownUser(
            f"there is no user {user_id!r} in Redis at {settings.redis.masked_url}, generation "
            f"{store.generation}: none of its events was applied, or none for {settings.redis.ttl_days:g} "
            "days (redis.ttl_days). `driftline status` shows what waits to be applied"
        )
    return record


def _window(state: UserState) -> list[WindowEvent]:
    return list(map(WindowEvent, state.items, state.types, state.times, state.ids))


def state_of(record: UserRecord) -> UserState:
    """The window of a stored row; raises `StateRefused` where it is none."""
    try:
        return decode_state(record.row.state)
    except InvalidState as error:
        raise _unreadable(record, error) from error


def recommendation_of(record: UserRecord) -> Recommendation:
    """The list of a stored row; raises `StateRefused` where it is none."""
    try:
        return decode_recommendation(record.row.recommendations)
    except msgspec.DecodeError as error:
        raise _unreadable(record, error) from error


def _unreadable(record: UserRecord, error: Exception) -> StateRefused:
    return StateRefused(
        f"the row of user {record.user_id!r} in the store can't be read: {error}. It was not written by this version; "
        "upgrade, or delete that key (its window then starts anew)"
    )
