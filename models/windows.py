"""From windows of events to the arrays that an encoder takes: one function for training, export, backfill and live."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Protocol

import numpy as np

from models.spec import IntArray, Vectors
from models.vocabulary import Vocabulary


class Window(Protocol):
    """A user's recent events, oldest first, as three parallel sequences."""

    @property
    def items(self) -> Sequence[str]:
        """Item ids."""

    @property
    def types(self) -> Sequence[str]:
        """Event type names, such as "click"."""

    @property
    def times(self) -> Sequence[int]:
        """Event times, milliseconds since the epoch, never decreasing."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowInputs:
    """The encoder's inputs. Rows are padded on the right with 0.

    Attributes:
        items: Item rows, shape (batch, length), int64; 0 is padding.
        types: Event types, shape (batch, length), int64; 0 is padding.
        ages: Seconds before the newest event of the row, shape (batch, length), float32.
        lengths: Events in each row, shape (batch,), int64.
    """

    items: IntArray
    types: IntArray
    ages: Vectors
    lengths: IntArray

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.lengths)

    def as_feed(self) -> dict[str, IntArray | Vectors]:
        """The arrays by the names of the encoder's inputs, as ONNX Runtime takes them."""
        return {"items": self.items, "types": self.types, "ages": self.ages, "lengths": self.lengths}


def window_inputs(
    windows: Sequence[Window], vocabulary: Vocabulary, types: Sequence[str], max_length: int
) -> WindowInputs:
    """Turn windows into the encoder's inputs.

    Events of items that the vocabulary does not know are left out as if they had never happened; of the others the
    newest `max_length` are kept. With vocabulary ["a", "b"] and types ["click", "view"] the two windows

        items ["a", "x", "b"]   types ["click", "click", "wish"]   times [1000, 2000, 4500]
        items ["b"]             types ["view"]                     times [9000]

    become ("x" is unknown, "wish" is the type after the named ones, ages are in seconds)

        items   [[1, 2],      types [[1, 3],      ages [[3.5, 0],     lengths [2, 1]
                 [2, 0]]             [2, 0]]            [0,   0]]

    Args:
        windows: The windows, oldest event first in each.
        vocabulary: The model's items.
        types: The model's event type names, `ModelConfig.types`.
        max_length: Most events to keep of a window, `WindowRule.max`.

    Returns:
        The inputs, one row a window in the order given, as long as the longest row kept and never shorter than 1.
        A window without a known item has length 0.

    Raises:
        ValueError: `max_length` below 1, or a window whose three sequences differ in length.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    window_items = [window.items for window in windows]
    window_types = [window.types for window in windows]
    window_times = [window.times for window in windows]
    counts = list(map(len, window_items))
    if counts != list(map(len, window_types)) or counts != list(map(len, window_times)):
        raise ValueError("a window needs as many types and times as items")

    # All windows as one flat run of events: everything after these three lookups is numpy over the whole batch.
    events = sum(counts)
    type_ids = {name: index for index, name in enumerate(types, start=1)}
    flat_items = np.fromiter(map(vocabulary.rows.get, chain.from_iterable(window_items), repeat(0)), np.int64, events)
    flat_types = np.fromiter(
        map(type_ids.get, chain.from_iterable(window_types), repeat(len(type_ids) + 1)), np.int64, events
    )
    flat_times = np.fromiter(chain.from_iterable(window_times), np.int64, events)

    lengths = np.array(counts, np.int64)
    known = flat_items > 0
    if not known.all():
        flat_items, flat_types, flat_times = flat_items[known], flat_types[known], flat_times[known]
        lengths = np.bincount(np.repeat(np.arange(len(counts)), counts)[known], minlength=len(counts))
    if (lengths > max_length).any():
        from_newest = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat_items))
        newest = from_newest <= max_length
        flat_items, flat_types, flat_times = flat_items[newest], flat_types[newest], flat_times[newest]
        lengths = np.minimum(lengths, max_length)

    width = max(1, int(lengths.max(initial=0)))
    filled = np.arange(width) < lengths[:, None]
    items = np.zeros(filled.shape, np.int64)
    type_matrix = np.zeros(filled.shape, np.int64)
    ages = np.zeros(filled.shape, np.float32)
    # The flat run is in row-major order, as a boolean mask fills.
    items[filled] = flat_items
    type_matrix[filled] = flat_types
    some = lengths[lengths > 0]
    newest_times = np.repeat(flat_times[np.cumsum(some) - 1], some)
    # Subtract as whole milliseconds: float32 cannot hold an epoch time to the second.
    ages[filled] = (newest_times - flat_times) / 1_000.0
    return WindowInputs(items, type_matrix, ages, lengths)
