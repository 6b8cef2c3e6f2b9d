"""A visitor's row and a catalogue of four items whose vectors are points of the compass."""

from collections.abc import Sequence

import numpy as np

from models.spec import ItemMetadata
from models.vocabulary import Vocabulary
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    encode_recommendation,
)
from streams.interest.engine import UserRow
from streams.interest.window import STATE_VERSION, UserState, encode_state

METADATA = {
    "east": ItemMetadata("East", ("Directions",)),
    "north": ItemMetadata("North", ("Directions",)),
    "west": ItemMetadata("West", ("Wild",)),
}
VECTORS = np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [5, 5]], np.float32)
VOCABULARY = Vocabulary(["east", "north", "west", "no-metadata"])


def row(
    number: int, direction: Sequence[float], window: Sequence[str], items: Sequence[str], drift: float | None
) -> UserRow:
    recommendation = Recommendation(
        f"recommendation-{number}",
        "ada",
        0,
        "live",
        "personal",
        Trigger(f"event-{number}", "click", window[-1], number * 1000, "clicks", 0, number),
        ModelName("model", "1"),
        VectorSummary(2, drift),
        [RecommendedItem(item, rank, 0.5, ["east"]) for rank, item in enumerate(items, start=1)],
    )
    state = UserState(
        STATE_VERSION,
        list(window),
        ["view"] * (len(window) - 1) + ["click"],
        [1000 * place for place in range(len(window))],
        [f"event-{place}" for place in range(len(window))],
        False,
        b"",
    )
    return UserRow(
        np.array(direction, "<f4").tobytes(), encode_recommendation(recommendation), encode_state(state), "1", 0
    )
