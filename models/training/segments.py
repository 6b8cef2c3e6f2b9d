"""Sequences cut into what a training step takes."""

from collections.abc import Sequence

import numpy as np

from models.data.events import UserSequence


def training_segments(
    sequences: Sequence[UserSequence], max_length: int, rng: np.random.Generator
) -> list[UserSequence]:
    """Cut sequences into segments that cover every event as a target once an epoch, wherever its window begins.

    A sequence is tiled from its end with segments of `max_length + 1` events that overlap by one: the last of each is
    only a target, the first only an input. The tiling's end of a sequence that does not fit into one segment is moved
    back, with probability one half, by a random 0 to `max_length - 1`, so that cuts fall elsewhere every epoch; the few
    events after it sit out this epoch.

    Args:
        sequences: What to learn from.
        max_length: Longest window.
        rng: Where the cuts come from.

    Returns:
        Segments of 2 to `max_length + 1` events.
    """
    segments = []
    for sequence in sequences:
        stop = len(sequence)
        if stop > max_length + 1 and rng.random() < 0.5:
            stop -= int(rng.integers(0, max_length))
        while stop >= 2:
            start = max(0, stop - max_length - 1)
            segments.append(sequence.part(start, stop))
            stop = start + 1
    return segments
