"""Recommendation v1: what an app reads after a user's interest moved. JSON, keyed by user id."""

from hashlib import blake2b
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct


class Trigger(Struct, frozen=True, gc=False):
    """The newest event, in the order of the log, that moved this user's window."""

    event_id: str
    type: str
    item_id: str
    event_time: Annotated[int, Meta(description="Milliseconds since 1970.")]
    topic: str
    partition: int
    offset: int
    topic_id: Annotated[
        str,
        Meta(description="Kafka's id of the topic: one made anew begins at offset 0 again. Empty where it has none."),
    ] = ""


class ModelName(Struct, frozen=True):
    """Which model computed the vector."""

    name: str
    version: str


class VectorSummary(Struct, frozen=True, gc=False):
    """The new interest vector in brief; the vector itself is in Redis."""

    dim: int
    drift: Annotated[
        float | None, Meta(description="Cosine distance to the user's previous vector, 0 to 2; null for the first.")
    ]


class RecommendedItem(Struct, frozen=True, gc=False):
    """One item of a list."""

    item_id: str
    rank: Annotated[int, Meta(ge=1, description="1 is the best.")]
    score: Annotated[
        float | None,
        Meta(description="The model's: the dot product of the vectors, or its scorer's. null for a popular item."),
    ]
    because: Annotated[list[str], Meta(description="Items of the user's window closest to it, closest first.")]


class Recommendation(Struct, frozen=True):
    """A list of items for one user. Two with the same id have the same list, up to rounding: drop repeats by id."""

    recommendation_id: str
    user_id: str
    generated_at: Annotated[int, Meta(description="Milliseconds since 1970.")]
    mode: Literal["live", "replay"]
    strategy: Annotated[
        Literal["personal", "popular"],
        Meta(description="`popular`: the model knows none of the user's items, so the list is the popular items."),
    ]
    trigger: Trigger
    model: ModelName
    vector: VectorSummary
    items: list[RecommendedItem]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Recommendation)


def encode_recommendation(recommendation: Recommendation) -> bytes:
    """JSON, as on the topic and in Redis."""
    return _encoder.encode(recommendation)


def decode_recommendation(raw: bytes) -> Recommendation:
    """The recommendation in ``raw``.

    Raises:
        msgspec.DecodeError: Not a Recommendation v1.
    """
    try:
        return _decoder.decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"not a recommendation: {error}") from error


def recommendation_id(generation: str, model_version: str, user_id: str, trigger: Trigger) -> str:
    """A deterministic id, 32 hex digits: a replay gives the same list of the same model the same id.

    The trigger is named by its place in the raw log as well as its event id: after the memory of repeats has
    forgotten an event id, a second event may carry it, and that one leads to another list. The topic's id belongs to the
    place: in a topic made anew the same place, and with it a derived event id, is another event's.
    """
    parts = (
        generation,
        model_version,
        user_id,
        trigger.event_id,
        trigger.topic,
        trigger.topic_id,
        trigger.partition,
        trigger.offset,
    )
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=16).hexdigest()
