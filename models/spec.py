"""What describes a model: the plain values that training writes and serving reads."""

import msgspec
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

CONFIG_FORMAT = 1
"""The layout of config.json that this code writes, and the only one that it reads."""

MAX_POPULAR = 1_000
"""How many popular items a bundle may name: what someone without a known item is recommended."""


class WindowRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a user's events become a bounded window.

    Events are appended in time order; a window that would exceed `max` events is cut to its newest `keep`. With
    `keep == max` the window slides; with a smaller `keep` positions never shift between two cuts, so what a causal
    transformer computed for the earlier events stays valid.

    Raises:
        ValueError: Not 1 <= keep <= max.
    """

    max: int
    keep: int

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.max:
            raise ValueError(f"a window rule needs 1 <= keep <= max, not keep={self.keep}, max={self.max}")


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """config.json: everything that serving must know about a model besides its arrays.

    Attributes:
        format: The layout of this file, `CONFIG_FORMAT`.
        name: What people call the model, such as "sasrec-demo".
        version: 12 hex digits of the content hash; two different models never share one.
        dim: Length of a vector.
        window: The window rule that the model was trained for.
        types: Event type names. Type i is the encoder's type i + 1; 0 is padding, len(types) + 1 any other type.
        popular: Item ids, most popular first, at most `MAX_POPULAR`.
        candidates: Items that are retrieved by dot product for the bundle's scorer to order; None: there is no scorer.
            A field left at its default is not written, so that bundles without the part keep their version.

    Raises:
        ValueError: A value out of its range, or a type or popular item named twice.
    """

    format: int
    name: str
    version: str
    dim: int
    window: WindowRule
    types: tuple[str, ...]
    popular: tuple[str, ...]
    candidates: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a model needs a name")
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, not {self.dim}")
        if len(set(self.types)) != len(self.types):
            raise ValueError(f"an event type is named twice in {list(self.types)}")
        if len(self.popular) > MAX_POPULAR:
            raise ValueError(f"at most {MAX_POPULAR:,} popular items, not {len(self.popular):,}")
        if len(set(self.popular)) != len(self.popular):
            raise ValueError("an item is named twice among the popular ones")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"a scorer needs at least 1 candidate, not {self.candidates}")


class ItemMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What people see of an item: its title, and the topics that an explanation may name."""

    title: str
    topics: tuple[str, ...] = ()
