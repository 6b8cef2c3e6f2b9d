"""Who was erased, and when: kept as long as the store lives, so that nothing older comes back by a replay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Erasure:
    """A `$erase` in the log.

    Attributes:
        erased_ms: Kafka's timestamp of it, milliseconds since 1970.
        frame_offset: Of its frame in `interactions`.
    """

    user_id: str
    erased_ms: int
    frame_offset: int


def user_digest(user_id: str) -> str:
    """What stands for a user where the id itself must not be kept: 32 hex digits."""
    return blake2b(user_id.encode(), digest_size=_DIGEST_BYTES).hexdigest()


class Erasures:
    """The erasures that are known here. Falsy while there are none, as nearly always: ask that first.

    Args:
        recorded: When each user was erased last, milliseconds since 1970, by digest.
    """

    def __init__(self, recorded: Mapping[str, int] | None = None) -> None:
        self._erased_ms = dict(recorded or {})

    def __len__(self) -> int:
        return len(self._erased_ms)

    def covers(self, user_id: str, appended_ms: int) -> bool:
        """Whether a user was erased at or after the time when an event of theirs came into Kafka."""
        erased_ms = self.erased_ms(user_id)
        return erased_ms is not None and appended_ms <= erased_ms

    def erased_ms(self, user_id: str) -> int | None:
        """When a user was erased last, milliseconds since 1970; None: never."""
        return self._erased_ms.get(user_digest(user_id)) if self._erased_ms else None

    def add(self, user_id: str, erased_ms: int) -> None:
        """Take in one more; of each user the latest counts."""
        self._add(user_digest(user_id), erased_ms)

    def update(self, others: "Erasures") -> None:
        """Take in others."""
        for digest, erased_ms in others.items():
            self._add(digest, erased_ms)

    def items(self) -> Iterable[tuple[str, int]]:
        """Each digest with the time."""
        return self._erased_ms.items()

    def _add(self, digest: str, erased_ms: int) -> None:
        self._erased_ms[digest] = max(erased_ms, self._erased_ms.get(digest, erased_ms))
