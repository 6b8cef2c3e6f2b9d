"""One connection to Redis: how questions are asked, and how its errors become ours."""

import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.errors import AuthenticationFailed, StateRefused, StoreUnavailable
from streams.settings import RedisSettings

# Keys looked at by one SCAN call: a fraction of a millisecond of Redis's time.
SCAN_COUNT: Final = 500

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the digest that Redis knows it by."""

    text: str
    digest: str

    @classmethod
    def named(cls, name: str) -> Self:
        """The script in ``lua/<name>.lua``."""
        text = resources.files("streams.store.redis").joinpath(f"lua/{name}.lua").read_text(encoding="utf-8")
        # SHA-1 is what EVALSHA takes; nothing is kept secret or proven by it.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Connection:
    """A client of one Redis server.

    Args:
        settings: Where Redis is, and who logs in.

    Raises:
        SettingsError: A secret's file or the certificates cannot be read.
    """

    def __init__(self, settings: RedisSettings) -> None:
        settings.check_files()
        self.where = settings.masked_url
        self._prefix = settings.key_prefix
        self.client = redis.Redis.from_url(
            settings.url.get_secret_value(),
            **settings.client_options(),
            # The caller retries, counts and reports; a second, silent retry below would hide that.
            retry=Retry(NoBackoff(), 0),
        )

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def run(self, script: Script, calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        """Run a script once for each pair of keys and arguments, all in one round trip.

        redis-py's own script objects (8.1) ask SCRIPT EXISTS before every pipeline: a second round trip.
        """

        def run() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for keys, arguments in calls:
                    pipe.evalsha(script.digest, len(keys), *keys, *arguments)
                return pipe.execute()

        def run_loaded() -> list[Any]:
            try:
                return run()
            except redis.exceptions.NoScriptError:  # a new server, or one that was restarted
                self.client.script_load(script.text)
                return run()

        return self.ask(run_loaded)

    def ask(self, question: Callable[[], _Result]) -> _Result:
        """The answer to a question.

        Raises:
            StoreUnavailable: There is none now, but there may be later.
            AuthenticationFailed: There will be none.
            StateRefused: A key holds what is not ours.
        """
        try:
            return question()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise AuthenticationFailed(
                f"Redis at {self.where} refuses these credentials: {error}; check redis.username and redis.password, "
                "and what this user may do"
            ) from error
        except redis.exceptions.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise StateRefused(
                    f"a key under {self._prefix!r} in Redis at {self.where} is not ours: {error}; "
                    "set redis.key_prefix to a name that nothing else uses"
                ) from error
            # What Redis 6 and Redis 7 say where a script may be run and a command in it may not.
            if "user executing the script" in str(error) or "ACL failure in script" in str(error):
                raise AuthenticationFailed(
                    f"Redis at {self.where} lets this user run our scripts, but not all commands in them: {error}; "
                    "check the rights of redis.username"
                ) from error
            # OOM, READONLY after a failover, MISCONF when a snapshot failed: all pass.
            raise StoreUnavailable(f"Redis at {self.where} refused a command: {error}") from error
        except redis.RedisError as error:
            if isinstance(error.__context__, ssl.SSLCertVerificationError):
                raise AuthenticationFailed(
                    f"Redis at {self.where} cannot be trusted: {error.__context__.verify_message}; "
                    "check redis.ssl_ca_file (who signed its certificate) and the host in redis.url"
                ) from error
            reason = str(error).removesuffix(".")
            raise StoreUnavailable(f"Redis at {self.where} cannot be used: {reason}; is it running?") from error
