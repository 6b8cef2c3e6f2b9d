"""Sequences cut into what a training step takes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from models.data.events import UserSequence
from models.vocabulary import Vocabulary
from models.windows import WindowInputs, window_inputs

_POOL = 4_096  # segments sorted by length together: little padding, and still a different mix every epoch
_MULTIPLE = 8  # batches are filled by lengths rounded up to it: few shapes, which the kernels' caches like


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


def batches_of(
    segments: Sequence[UserSequence], batch_tokens: int, rng: np.random.Generator
) -> list[list[UserSequence]]:
    """Group segments of similar length, at most `batch_tokens` events a batch with its padding, in random order."""
    order = rng.permutation(len(segments))
    batches: list[list[UserSequence]] = []
    for start in range(0, len(order), _POOL):
        pool = sorted((segments[index] for index in order[start : start + _POOL]), key=len)
        batch: list[UserSequence] = []
        for segment in pool:
            # The pool is sorted, so this segment is the batch's longest.
            width = math.ceil(len(segment) / _MULTIPLE) * _MULTIPLE
            if batch and (len(batch) + 1) * width > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(segment)
        batches.append(batch)
    return [batches[index] for index in rng.permutation(len(batches))]


def batch_inputs(
    batches: Sequence[Sequence[UserSequence]], vocabulary: Vocabulary, types: Sequence[str], max_length: int
) -> Iterator[WindowInputs]:
    """Batches as encoder inputs of up to `max_length + 1` events, each row with at least two known items."""
    for batch in batches:
        inputs = window_inputs(batch, vocabulary, types, max_length + 1)
        # A segment of unknown items alone, or of one known item, teaches nothing.
        useful = inputs.lengths >= 2
        if useful.all():
            yield inputs
        elif useful.any():
            yield WindowInputs(inputs.items[useful], inputs.types[useful], inputs.ages[useful], inputs.lengths[useful])
