"""Which generations there are, and which one is served."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgspec
import redis

from streams.contracts.generation import (
    Generation,
    Serving,
    decode_generation,
    decode_serving,
    encode_record,
)
from streams.errors import StateRefused
from streams.settings import RedisSettings
from streams.store.redis.connection import SCAN_COUNT, Connection
from streams.store.redis.keys import Keys
from streams.store.redis.state import RedisStore

_Record = TypeVar("_Record")


class RedisGenerations:
    """The generations under one key prefix.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        self._client = self._connection.client
        self._ask = self._connection.ask
        self._serving = Keys(settings.key_prefix, settings.generation).serving
        self._records = f"{settings.key_prefix}:generations"

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def serving(self) -> Serving:
        """What is served: what was activated last, or the generation of the settings.

        Raises:
            StateRefused: The key holds something else.
        """
        return self._serving_of(self._ask(lambda: self._client.get(self._serving)))

    def serve(self, expected: Serving, new: Serving) -> bool:
        """Serve ``new`` if ``expected`` is still what is served, and nobody is filling the generation."""
        plan = Keys(self._settings.key_prefix, new.generation).plan

        def replace() -> bool:
            with self._client.pipeline() as pipe:
                pipe.watch(self._serving, plan)  # type: ignore[no-untyped-call]  # redis 8.1
                found: Any = pipe.get(self._serving)
                # A backfill's windows are ahead of watermark and vectors: live workers must not come in between.
                if self._serving_of(found) != expected or pipe.exists(plan):
                    return False
                pipe.multi()
                pipe.set(self._serving, encode_record(new))
                try:
                    pipe.execute()
                except redis.WatchError:
                    return False
                return True

        return self._ask(replace)

    def register(self, generation: Generation) -> bool:
        """Record a generation unless one of its name is; whether it was recorded now."""
        return bool(self._ask(lambda: self._client.hsetnx(self._records, generation.name, encode_record(generation))))

    def record(self, generation: Generation) -> None:
        """Record a generation in the place of what is known of it."""
        self._ask(lambda: self._client.hset(self._records, generation.name, encode_record(generation)))

    def find(self, name: str) -> Generation | None:
        """What is recorded of a generation."""
        raw: Any = self._ask(lambda: self._client.hget(self._records, name))
        return None if raw is None else self._decoded(decode_generation, raw, f"field {name} of {self._records}")

    def all(self) -> list[Generation]:
        """Every generation that is recorded, oldest first."""
        found: Any = self._ask(lambda: self._client.hgetall(self._records))
        records = [
            self._decoded(decode_generation, raw, f"field {name.decode()} of {self._records}")
            for name, raw in found.items()
        ]
        return sorted(records, key=lambda record: (record.created_ms, record.name))

    def drop(self, name: str) -> Iterator[int]:
        """Remove every key of a generation, and at last its record; yields how many keys each step removed.

        One step looks at some hundred keys and frees their memory beside Redis's own thread, so nobody waits for it.
        One that was interrupted is taken up by dropping again.
        """
        prefix = Keys(self._settings.key_prefix, name).prefix
        keys = iter(self._client.scan_iter(match=prefix + "*", count=SCAN_COUNT))
        while some := self._ask(lambda: list(islice(keys, SCAN_COUNT))):
            yield int(self._ask(partial(self._client.unlink, *some)))
        self._ask(lambda: self._client.hdel(self._records, name))

    def _serving_of(self, raw: Any) -> Serving:
        if raw is None:
            return Serving(self._settings.generation)
        return self._decoded(decode_serving, raw, self._serving)

    def _decoded(self, decode: Callable[[bytes], _Record], raw: bytes, where: str) -> _Record:
        try:
            return decode(raw)
        except msgspec.DecodeError as error:
            raise StateRefused(
                f"{where} in Redis at {self._connection.where} is not ours: {error}; set redis.key_prefix to a name "
                "that nothing else uses, or upgrade"
            ) from error


def open_served_store(settings: RedisSettings) -> RedisStore:
    """The rows of the generation that is served now.

    Raises:
        SettingsError, StoreUnavailable, AuthenticationFailed, StateRefused: As `RedisGenerations`.
    """
    with closing(RedisGenerations(settings)) as generations:
        return RedisStore(settings, generations.serving().generation)
