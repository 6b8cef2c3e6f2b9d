"""Pseudonyms: what stands for a user's id in everything behind ingest, where a key is set."""

from hashlib import blake2b
from typing import Final

from msgspec.structs import replace

from streams.contracts.event import IDENTIFY, Event

_DIGEST_BYTES: Final = 16


class Pseudonyms:
    """Makes pseudonyms of ids: their BLAKE2b hash under the key, 32 hex digits. Falsy without a key: ids stay as they are.

    Args:
        key: 16 to 64 bytes.
    """

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    def __bool__(self) -> bool:
        return self._key is not None

    def of(self, user_id: str) -> str:
        """What stands for a user."""
        if self._key is None:
            return user_id
        return blake2b(user_id.encode(), digest_size=_DIGEST_BYTES, key=self._key).hexdigest()

    def in_event(self, event: Event) -> Event:
        """The event with pseudonyms in the place of ids."""
        if self._key is None:
            return event
        user_id = self.of(event.user_id)
        if event.type == IDENTIFY:
            return replace(event, user_id=user_id, anonymous_id=self.of(event.anonymous_id))
        return replace(event, user_id=user_id, anonymous_id=None)
