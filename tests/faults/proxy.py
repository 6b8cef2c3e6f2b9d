"""What stands between a client and its server, and does to the connection what networks do."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from deploy.local.process import LOOPBACK, free_port

_CHUNK_BYTES: Final = 1 << 16
_PATIENCE_S: Final = 120.0


class Proxy:
    """Passes TCP connections on to a port of this machine. Use it as a context.

    Attributes:
        port: Where clients connect.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._is_cut = False
        self._delay_s = 0.0
        self._answers_to_lose = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._server: asyncio.Server = self._do(asyncio.start_server(self._accept, LOOPBACK, self.port))
            self._flowing: asyncio.Event = self._do(_new_event())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._do(self._close())
        self._end_loop()

    def point_at(self, target: int) -> None:
        """Cut what is connected; who connects from now on reaches another port."""
        self._target = target
        self._do(self._break_all())

    def cut(self) -> None:
        """Break every connection and refuse new ones, until `mend`."""
        self._is_cut = True
        self._do(self._break_all())

    def hold(self) -> None:
        """Let nothing through any more, until `mend`; a cut then loses what was held."""
        self._soon(self._flowing.clear)

    def slow(self, delay_s: float) -> None:
        """Let everything take so much longer, each way, until `mend`."""
        self._delay_s = delay_s

    def lose_answers(self, count: int) -> None:
        """Pass on what clients ask, and break the connection where the answer should come; so often."""
        self._answers_to_lose = count

    @property
    def answers_to_lose(self) -> int:
        """How many are still to be lost."""
        return self._answers_to_lose

    def mend(self) -> None:
        """Pass everything on at once again."""
        self._is_cut = False
        self._delay_s = 0.0
        self._answers_to_lose = 0
        self._soon(self._flowing.set)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        if connection is not None:
            self._connections.add(connection)
        # A connection that breaks, from whichever side, is what proxies see all day.
        with suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        if connection is not None:
            self._connections.discard(connection)
        await _shut(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            return
        answers, asking = await asyncio.open_connection(LOOPBACK, self._target)
        ways = [
            asyncio.create_task(self._pass_on(reader, asking, are_answers=False)),
            asyncio.create_task(self._pass_on(answers, writer, are_answers=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _shut(asking)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, are_answers: bool) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if are_answers and self._answers_to_lose > 0:
                self._answers_to_lose -= 1
                return
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()

    async def _break_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _close(self) -> None:
        self._server.close()
        await self._break_all()
        await self._server.wait_closed()

    def _soon(self, call: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(call)

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_PATIENCE_S)

    def _end_loop(self) -> None:
        self._soon(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _new_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
