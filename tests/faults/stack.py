"""The servers of the fault harness: a cluster of Kafkas, a Redis with a replica, and what workers reach it through."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from redis import Redis

from deploy.local.process import LOOPBACK
from deploy.local.servers import KafkaCluster, RedisServer
from tests.faults.proxy import Proxy
from tests.integration.waiting import wait_until

COPIES: Final = 3
_ANSWER_S: Final = 5.0
_SYNC_S: Final = 120.0


def cluster_in(directory: Path) -> KafkaCluster:
    """Three brokers; describes them, starts nothing."""
    return KafkaCluster(
        directory,
        COPIES,
        properties={
            # Three brokers, some workers and perhaps other people share few processors: one that is only slow is not gone.
            "broker.session.timeout.ms": "6000",
            "broker.heartbeat.interval.ms": "2000",
            # Each partition of each round reserves twice 10 MiB otherwise.
            "log.index.size.max.bytes": "65536",
        },
    )


class RedisPair:
    """A primary, its replica, and the proxy by which workers reach whichever is the primary. Use it as a context.

    Attributes:
        proxy: What workers connect to.
    """

    def __init__(self, directory: Path) -> None:
        self._servers = [RedisServer(directory / name, arguments=_REPLICATION) for name in ("redis-1", "redis-2")]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self._servers:
                server.start()
                stack.callback(server.kill)
            self.proxy = stack.enter_context(Proxy(self.primary.port))
            self._link = stack.enter_context(Proxy(self.primary.port))
            self._follow()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def primary(self) -> RedisServer:
        """The one that takes writes."""
        return self._servers[0]

    @property
    def url(self) -> str:
        """Where workers find it, whoever is the primary."""
        return f"redis://{LOOPBACK}:{self.proxy.port}/0"

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """A connection to the primary, past the proxy."""
        with _client(self.primary) as client:
            yield client

    def restart(self) -> None:
        """End the primary in order, its data written, and start it again."""
        self.primary.stop(save=True)
        self.primary.start()

    def restart_empty(self) -> None:
        """Start the primary again without its data, as one that never wrote any; its replica follows it in that."""
        self.primary.kill()
        (self.primary.directory / "dump.rdb").unlink(missing_ok=True)
        self.primary.start()

    def part(self) -> None:
        """From now on nothing reaches the replica."""
        self._link.hold()

    def fail_over(self) -> None:
        """Kill the primary and let the replica take its place; the old one comes back as a replica, without its data."""
        self.primary.kill()
        self._servers.reverse()
        with _client(self.primary) as client:
            client.replicaof("NO", "ONE")
        self._link.point_at(self.primary.port)
        self._link.mend()
        self.proxy.point_at(self.primary.port)
        self._servers[1].start()
        self._follow()

    def wait_until_in_step(self) -> None:
        """Wait until the replica has everything that the primary had when this was called."""
        with self.client() as client:
            offset = client.info("replication")["master_repl_offset"]
        wait_until(lambda: self._replicated() >= offset, _SYNC_S, "the replica has what the primary has")

    def _follow(self) -> None:
        with _client(self._servers[1]) as client:
            client.replicaof(LOOPBACK, str(self._link.port))
        wait_until(lambda: self._replicated() >= 0, _SYNC_S, "the replica follows the primary")

    def _replicated(self) -> int:
        """How far the replica is; -1 while it does not follow."""
        with _client(self._servers[1]) as client:
            found = client.info("replication")
        return int(found["slave_repl_offset"]) if found.get("master_link_status") == "up" else -1


_REPLICATION: Final = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")


def _client(server: RedisServer) -> Redis:
    return Redis(host=LOOPBACK, port=server.port, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)
