"""What a state store must do. One contract suite (tests/store_contract.py) runs against every implementation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.frame import Source
from streams.interest.engine import UserRow

Marks = Mapping[Source, int]


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a partition of `interactions` has been applied.

    Attributes:
        offset: Offset of the last applied frame; while none is, of the one that would precede the log's first, mostly -1.
        topic_id: Kafka's id of the `interactions` topic; "" where the broker has none.
        partitions: How many partitions the topic had.
        marks: For each raw partition the highest raw offset applied here.
    """

    offset: int
    topic_id: str
    partitions: int
    marks: Marks = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What the engine needs of a user's row to advance it."""

    state: bytes | None
    vector: bytes | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows of one partition and its watermark's offset, as of one moment.

    If the offset is still the one that this worker applied last, then the rows are as this worker left them.
    """

    rows: Sequence[StoredRow]
    offset: int | None


@dataclass(frozen=True, slots=True)
class Swap:
    """Rows and watermark of one partition, to be written together if nobody moved the watermark.

    Attributes:
        expected: The watermark's offset as this worker knows it; None where there is no watermark yet.
        watermark: The new one; its ``marks`` are those that changed.
        rows: New rows by user.
        ended: Users whose rows go.
        refreshes: The rows are encoded anew and nothing else: they expire when they would have, and one that is gone stays
            gone. The watermark stays where it is.
    """

    partition: int
    expected: int | None
    watermark: Watermark
    rows: Mapping[str, UserRow]
    ended: Sequence[str] = ()
    refreshes: bool = False


@dataclass(frozen=True, slots=True)
class SwapResult:
    """Whether the swap was made, and the watermark's offset as it is now (None: there is none)."""

    swapped: bool
    offset: int | None


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user's whole row, as people and exports read it."""

    user_id: str
    partition: int
    row: UserRow


class StateStore(Protocol):
    """The state of one generation.

    Every method raises `StoreUnavailable` when the store can't be reached or fails in passing, and
    `AuthenticationFailed` when it refuses the credentials.

    Attributes:
        generation: Its name.
    """

    generation: str

    def partitions(self) -> int | None:
        """The number of partitions that users are spread over; None while the store is empty."""

    def set_partitions(self, partitions: int) -> int:
        """Record the number of partitions unless there is one; returns the one that holds."""

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        """The watermark of each partition; None where no worker has begun."""

    def replace_watermark(self, partition: int, expected: Watermark | None, new: Watermark) -> bool:
        """Put ``new``, marks and all, in the place of ``expected``; False if it had moved. For a person's decision."""

    def read_rows(self, users: Mapping[int, Sequence[str]]) -> Mapping[int, Reading]:
        """The rows of the users of each partition, in the order asked for."""

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        """Make each swap or leave it, each on its own, in order."""

    def read_user(self, user_id: str) -> UserRecord | None:
        """One user's row; None where there is none (never seen, or expired)."""

    def read_users(self, user_ids: Sequence[str]) -> Sequence[UserRecord | None]:
        """As `read_user`, of many, in the order asked for."""

    def scan_users(self) -> Iterator[UserRecord]:
        """Every user, in no order, without holding up the store; one written meanwhile may come old, new or twice."""


class ErasureStore(Protocol):
    """What is recorded of erasures, for all generations together. Its methods raise as those of `StateStore`."""

    def read(self) -> Erasures:
        """All that are recorded."""

    def read_of(self, users: Sequence[str]) -> Erasures:
        """Those of these users."""

    def record(self, erasures: Erasures) -> None:
        """Record when users were erased; of each the latest time counts."""

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        """Remove the rows of erased users from every recorded generation that has not come to their erasure itself.

        Args:
            topic_id: Of the `interactions` topic that the erasures' frames lie in.
            partitions: That users are spread over where a generation does not say.
        """
