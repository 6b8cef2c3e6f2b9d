"""A state store in this process: the reference for the contract suite, and for tests of what stands above it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from streams.contracts.erasure import Erasure, Erasures, user_digest
from streams.contracts.frame import partition_of
from streams.interest.engine import UserRow
from streams.store.protocol import Reading, StoredRow, Swap, SwapResult, UserRecord, Watermark


class MemoryStore:
    """`StateStore` on dictionaries. Rows do not expire."""

    def __init__(self, generation: str = "g1") -> None:
        self.generation = generation
        self._partitions: int | None = None
        self._watermarks: dict[int, Watermark] = {}
        self._rows: dict[str, UserRow] = {}

    def partitions(self) -> int | None:
        """See `StateStore`."""
        return self._partitions

    def set_partitions(self, partitions: int) -> int:
        """See `StateStore`."""
        self._partitions = self._partitions or partitions
        return self._partitions

    def read_watermarks(self, partitions: Sequence[int]) -> Mapping[int, Watermark | None]:
        """See `StateStore`."""
        return {partition: self._watermarks.get(partition) for partition in partitions}

    def replace_watermark(self, partition: int, expected: Watermark | None, new: Watermark) -> bool:
        """See `StateStore`."""
        if self._watermarks.get(partition) != expected:
            return False
        self._watermarks[partition] = new
        return True

    def read_rows(self, users: Mapping[int, Sequence[str]]) -> Mapping[int, Reading]:
        """See `StateStore`."""
        return {
            partition: Reading([self._stored(user) for user in wanted], self._offset(partition))
            for partition, wanted in users.items()
        }

    def swap(self, swaps: Sequence[Swap]) -> Sequence[SwapResult]:
        """See `StateStore`."""
        return [self._swap(swap) for swap in swaps]

    def read_user(self, user_id: str) -> UserRecord | None:
        """See `StateStore`."""
        row = self._rows.get(user_id)
        if row is None or self._partitions is None:
            return None
        return UserRecord(user_id, partition_of(user_id, self._partitions), row)

    def read_users(self, user_ids: Sequence[str]) -> list[UserRecord | None]:
        """As `read_user`, of many, in the order asked for."""
        return [self.read_user(user_id) for user_id in user_ids]

    def scan_users(self) -> Iterator[UserRecord]:
        """See `StateStore`."""
        for user_id in list(self._rows):
            record = self.read_user(user_id)
            if record is not None:
                yield record

    def forget(self, erasure: Erasure, topic_id: str, partitions: int) -> None:
        """Remove a user's row unless the erasure was applied here."""
        watermark = self._watermarks.get(partition_of(erasure.user_id, self._partitions or partitions))
        applied = watermark is not None and watermark.topic_id == topic_id and watermark.offset >= erasure.frame_offset
        if not applied:
            self._rows.pop(erasure.user_id, None)

    def _stored(self, user_id: str) -> StoredRow:
        row = self._rows.get(user_id)
        return StoredRow(None, None, None) if row is None else StoredRow(row.state, row.vector, row.model)

    def _offset(self, partition: int) -> int | None:
        watermark = self._watermarks.get(partition)
        return None if watermark is None else watermark.offset

    def _swap(self, swap: Swap) -> SwapResult:
        current = self._watermarks.get(swap.partition)
        found = self._offset(swap.partition)
        if found != swap.expected or (current is not None and current.topic_id != swap.watermark.topic_id):
            return SwapResult(swapped=False, offset=found)
        marks = {**(current.marks if current else {}), **swap.watermark.marks}
        self._watermarks[swap.partition] = replace(swap.watermark, marks=marks)
        self._rows |= {user: row for user, row in swap.rows.items() if not swap.refreshes or user in self._rows}
        for user in swap.ended:
            self._rows.pop(user, None)
        return SwapResult(swapped=True, offset=swap.watermark.offset)


class MemoryErasures:
    """`ErasureStore` on a dictionary.

    Args:
        generations: From which the erased are removed.
    """

    def __init__(self, generations: Sequence[MemoryStore] = ()) -> None:
        self.generations = generations
        self._recorded = Erasures()

    def read(self) -> Erasures:
        """See `ErasureStore`."""
        return Erasures(dict(self._recorded.items()))

    def read_of(self, users: Sequence[str]) -> Erasures:
        """See `ErasureStore`."""
        digests = {user_digest(user) for user in users}
        return Erasures({digest: erased_ms for digest, erased_ms in self._recorded.items() if digest in digests})

    def record(self, erasures: Erasures) -> None:
        """See `ErasureStore`."""
        self._recorded.update(erasures)

    def forget(self, erasures: Sequence[Erasure], topic_id: str, partitions: int) -> None:
        """See `ErasureStore`."""
        for store in self.generations:
            for erasure in erasures:
                store.forget(erasure, topic_id, partitions)
