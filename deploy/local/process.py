"""A server run as a child process that cannot outlive this one, and the ports it may use."""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path

LOOPBACK = "127.0.0.1"
_TETHER = Path(__file__).with_name("tether.py")
# Below the range that Linux and macOS take outgoing connections' ports from (32768 and 49152 upwards). A client that keeps
# reconnecting to a stopped server whose port lies in that range can be given that very port, connect to itself, and so
# keep the server from coming back.
_PORTS = range(15_000, 32_000)
# For servers whose port must still be theirs after they were away for a while: no other is ever given one of these.
KEPT_PORTS = range(10_000, 15_000)
# A server whose owner was killed a moment ago is being ended by its tether, which may take a second to notice.
_LOCK_TIMEOUT_S = 3.0


class ServerError(RuntimeError):
    """A local server could not be started, stopped or asked; the message says why and what to do."""


def port_is_free(port: int) -> bool:
    """Whether nothing listens on this port of the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of an earlier server that are still in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


# One after the other from a random one: so this process gives none twice before it is used, and others hardly the same.
_turns: dict[range, Iterator[int]] = {}


def free_port(among: range = _PORTS) -> int:
    """A port that nothing listens on now. Another process may take it before it is used: be ready to try again.

    Raises:
        ServerError: A hundred ports were all taken.
    """
    turns = _turns.setdefault(among, count(secrets.randbelow(len(among))))
    for turn in islice(turns, 100):
        port = among[turn % len(among)]
        if port_is_free(port):
            return port
    raise ServerError(
        f"no free port found in 100 tries between {among.start} and {among.stop - 1} on {LOOPBACK}; "
        "stop what holds them (`ss -ltnp`) and try again"
    )


class ServerProcess:
    """One running server: started by the constructor, tied to this process by `tether.py`.

    The server runs in its own process group, so Ctrl-C in a terminal reaches this process only, which can then stop the
    server in order. It also holds a lock on its directory for as long as it lives, so no second server can use the
    directory's data, whoever starts it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the command in `directory`, its output appended to `log`.

        Raises:
            ServerError: The directory is in use by another server, or the command cannot be run.
        """
        self._name = name
        self._log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        lock = _lock_directory(name, directory)
        try:
            # -I and -S: the tether needs nothing but the standard library, and so starts in about 15 ms.
            self._tether = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), str(log), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                pass_fds=[lock],
                start_new_session=True,
            )
        finally:
            os.close(lock)
        if self._tether.stdout is None:
            raise ServerError(f"{name} has no pipe to its tether; this is a bug")
        with self._tether.stdout as announcement:
            pid = announcement.readline().strip()
        if not pid:
            self._finish()
            raise ServerError(f"{name} could not be run as `{' '.join(command)}`.\n{self.log_tail()}")
        self.pid = int(pid)

    def exit_code(self) -> int | None:
        """None while the server runs, else its exit status."""
        return self._tether.poll()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the server to end; False when it still runs after `timeout_s`."""
        try:
            self._tether.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self, timeout_s: float) -> None:
        """Ask the server to end and wait for it.

        Raises:
            ServerError: It has not ended after `timeout_s`; it was then killed.
        """
        if self.exit_code() is None:
            self._signal(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.kill()
            raise ServerError(
                f"{self._name} did not end within {timeout_s:g} s of SIGTERM and was killed.\n{self.log_tail()}"
            )
        self._finish()

    def kill(self) -> None:
        """End the server at once, as a crash would: nothing is flushed, nothing is said to its clients."""
        if self.exit_code() is None:
            self._signal(signal.SIGUSR1)
        self._finish()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that the server wrote since this start, with the log's path, for an error message."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            written = log.read().decode(errors="replace").splitlines()
        if not written:
            return f"It wrote nothing to {self._log}."
        return "\n".join([f"The end of {self._log}:", *(f"  {line}" for line in written[-lines:])])

    def _signal(self, number: signal.Signals) -> None:
        # Through the tether: only it can know that the process id is still the server's.
        self._tether.send_signal(number)

    def _finish(self) -> None:
        self._tether.wait()
        if self._tether.stdin is not None:
            self._tether.stdin.close()


def _lock_directory(name: str, directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise ServerError(
                    f"{name} cannot use {directory}: another server is running on it; "
                    "stop that one or choose another directory"
                ) from None
            time.sleep(0.02)
        else:
            return lock
