"""Evolve: frames in, vectors and recommendations out. The only file that imports faust.

Faust keeps the consumer group, fetches, and pauses partitions when the queue is full. Everything that must be exact is
in `streams.services.applier`; this file keeps Faust from getting in its way (all measured on faust-streaming 0.15.3):

- It acknowledges a message even when the agent raises: so the agent only queues, nothing may raise in it, and an
  error anywhere ends the process at once, before any commit.
- After a rebalance it seeks to the committed offsets, once every handler of ``on_rebalance_complete`` has returned:
  so that handler commits watermark + 1. (``on_partitions_assigned`` is too late: the seek may come first.)
  A committed offset of 0 is not sought, so the handler does that itself.
- Applying runs in one thread of its own, so that heartbeats go on while Redis or the model is slow.

What is served may change while it runs (another model, another generation): that is loaded beside, and the loop moves to it
between two batches. Frames that the other generation lacks are read again before any that Faust delivers.
"""

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NoReturn

import faust
import stamina
import structlog
from faust.transport.drivers.aiokafka import KafkaError  # type: ignore[attr-defined]  # aiokafka's; Faust passes it on
from faust.types import TP
from yarl import URL

from streams.contracts.generation import Serving
from streams.errors import DriftlineError, LogUnavailable, StoreUnavailable
from streams.log.admin import LogAdmin
from streams.log.readers import ExtentsReader
from streams.log.topics import Partition
from streams.observe.health import Health
from streams.observe.metrics import EvolveMetrics
from streams.services.applier import Applier, Received
from streams.services.parts import Parts, Served
from streams.settings import KafkaSettings, Settings

_logger = structlog.get_logger("driftline.evolve")

_LAG_EVERY_S: Final = 1.0
_SERVING_EVERY_S: Final = 0.2
# After something that could not be loaded: reading a bundle takes a second of a core.
_RELOAD_EVERY_S: Final = 5.0
# Readers of every partition wait for the frames that are read again: none may be far behind the others.
_REREAD_BYTES: Final = 32 * 1024
_REREAD_WAIT_S: Final = 0.2
_SWEEP_EVERY_S: Final = 5.0
# Between two looks at some hundred keys, so that Redis is free for others most of the time.
_SWEEP_STEP_S: Final = 0.02
_SWEEP_USERS: Final = 64
_TAIL_CHECK_EVERY_S: Final = 5.0
# Leaving the group takes a second or two; a shutdown that hangs must not outlive a supervisor's patience (10 s).
_STOP_S: Final = 8.0
_FETCH_BYTES: Final = 64 * 1024
_UNEXPECTED: Final = 70  # EX_SOFTWARE of sysexits.h


def known_end(consumer: Any, partition: TP) -> int | None:
    """The end of a partition as of the last fetch; None where there was none, or the partition is being taken away."""
    try:
        end: int | None = consumer.highwater(partition)
    except AssertionError:
        # aiokafka 0.14 asserts that the partition is assigned: in a rebalance it is not, for some milliseconds.
        return None
    return end


class Evolve:
    """The evolve service: `run` until SIGTERM or SIGINT.

    Args:
        rebuild: An empty store under committed offsets is meant: apply the whole log again.

    Raises:
        LogError, TopicMissing: Kafka can't be reached, or lacks a topic.
        AuthenticationFailed: Kafka or Redis refuses the credentials.
    """

    def __init__(
        self, settings: Settings, parts: Parts, metrics: EvolveMetrics, health: Health, *, rebuild: bool = False
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._rebuild = rebuild
        self._admin = LogAdmin(settings.kafka, settings.evolve.group)
        names = [settings.topics.interactions, settings.topics.recommendations, settings.topics.dead_letters]
        self._topic = self._admin.topics(names)[settings.topics.interactions]
        self._parts = parts
        # A worker whom Redis refuses ends before it takes partitions from others.
        self._served = self._next = self._open_first()
        self._show_served()
        self._applier = Applier(
            settings,
            self._topic,
            self._served.store,
            self._served.engine,
            parts.outbox,
            metrics,
            health,
            parts.erasures,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="apply")
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self._called = asyncio.Event()  # something else than a frame is to be looked at
        self._reload_at = 0.0
        self._reread: ExtentsReader | None = None
        self._queue: asyncio.Queue[Received] = asyncio.Queue(settings.evolve.queue_frames)
        self._stopping = asyncio.Event()
        self._next_offsets: dict[int, int] = {}
        self._app = _faust_app(settings)
        self._app.on_rebalance_complete.connect(self._take_over)  # type: ignore[arg-type]  # a method is not seen as Fun
        self._app.agent(self._app.topic(self._topic.name, key_serializer="raw", value_serializer="raw"))(self._enqueue)

    async def run(self) -> None:
        """Serve until told to stop; frames under way are finished and acknowledged first."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            await self._app.start()
        except KafkaError as refusal:
            servers = self._settings.kafka.bootstrap_servers
            self._die(
                LogUnavailable(f"Kafka at {servers} does not let Faust in: {refusal}; aiokafka's error above says why")
            )
        applying = asyncio.create_task(self._apply_for_ever(), name="apply")
        tasks: list[asyncio.Task[Any]] = [
            applying,
            asyncio.create_task(self._watch_lag(), name="lag"),
            asyncio.create_task(self._watch_tail(), name="tail"),
            asyncio.create_task(self._watch_serving(), name="serving"),
            asyncio.create_task(self._sweep_now_and_then(), name="sweep"),
            asyncio.create_task(self._app.wait_until_stopped(), name="faust"),
            asyncio.create_task(self._stopping.wait(), name="stop"),
        ]
        finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            error = task.exception()
            if error is not None:
                self._die(error)
        if not self._stopping.is_set():
            self._die(RuntimeError(f"faust stopped by itself: {self._app.crash_reason!r}"))
        await self._stop(applying)

    async def _stop(self, applying: asyncio.Task[None]) -> None:
        _logger.info("stopping")
        self._health.block("stop", "stopping")
        leaving = asyncio.create_task(self._leave(applying), name="leave")
        # Not `asyncio.timeout`: Faust 0.15.3 waits on for the frames that were not acknowledged, and where it waits it
        # swallows a cancellation. So it was seen to wait for ever, when told to stop just after a rebalance.
        await asyncio.wait({leaving}, timeout=_STOP_S)
        if not leaving.done():
            # Nothing is lost: what was not acknowledged is above the watermark or known by it.
            _logger.warning("stopped without leaving the group", after_s=_STOP_S)
            os._exit(0)
        await leaving

    async def _leave(self, applying: asyncio.Task[None]) -> None:
        await applying  # sees the flag after the batch under way
        await self._app.stop()  # commits what was acknowledged and leaves the group

    # Faust calls these

    async def _enqueue(self, stream: Any) -> None:
        # noack: an event counts as done only when its frame was applied. events(): only events know their offset.
        async for event in stream.noack().events():
            message = event.message
            # A tombstone is no frame either; as empty bytes it is dead-lettered like one.
            await self._queue.put(Received(message.partition, message.offset, message.value or b"", token=event))

    async def _take_over(self, app: Any, *_: Any, signal: Any, **__: Any) -> None:  # noqa: ARG002 - Faust's form
        try:
            mine = sorted(tp.partition for tp in app.consumer.assignment() if tp.topic == self._topic.name)
            loop = asyncio.get_running_loop()
            self._next_offsets = await loop.run_in_executor(self._thread, self._assign, mine)
            # Not `commit`: that one commits what was acknowledged, this one what it is told (also backwards).
            starts = {TP(self._topic.name, partition): offset for partition, offset in self._next_offsets.items()}
            await app.consumer._commit(starts)  # noqa: SLF001
            # aiokafka 0.14 leaves a partition where it is when its committed offset is 0, as after --rebuild.
            await app.consumer.seek_wait({tp: offset for tp, offset in starts.items() if offset == 0})
            self._settle_fetches(app.consumer)
            _logger.info("assigned", next_offsets=self._next_offsets)
            self._health.started()
        # Faust logs what a handler raises, and goes on from the wrong offset.
        except Exception as error:  # noqa: BLE001
            self._die(error)

    def _settle_fetches(self, consumer: Any) -> None:
        """Let Kafka hold frames back for a moment, to hand out those of several partitions at a time.

        Faust 0.15.3 fixes a fetch at one byte and 1.5 s. At 1,000 events/s every frame then wakes a fetch of its own.
        And librdkafka's mock cluster lets a fetch that finds nothing wait to its end: every event would be as late.
        """
        fetcher = consumer._thread._consumer._fetcher  # noqa: SLF001 - neither library has a setting for it
        fetcher._fetch_min_bytes = _FETCH_BYTES  # noqa: SLF001
        fetcher._fetch_max_wait_ms = max(1, round(self._settings.evolve.linger_ms))  # noqa: SLF001

    def _assign(self, partitions: Sequence[int]) -> dict[int, int]:
        keys = [Partition(self._topic.name, partition) for partition in partitions]
        next_offsets = self._applier.assign(
            partitions, self._admin.extents(keys), self._admin.committed(keys) if keys else {}, rebuild=self._rebuild
        )
        self._read_again(None)  # Faust itself is sent back to where that had come
        return next_offsets

    # Our own loops

    async def _apply_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        backlog: list[Received] = []
        while not self._stopping.is_set():
            if self._next is not self._served:
                await loop.run_in_executor(self._thread, self._move)
            if self._reread is not None:
                await loop.run_in_executor(self._thread, self._apply_again, self._reread)
                continue
            if not backlog:
                backlog += await self._first_frame()
            while len(backlog) < self._settings.evolve.queue_frames and not self._queue.empty():
                backlog.append(self._queue.get_nowait())
            done, backlog = await loop.run_in_executor(self._thread, self._applier.apply, backlog)
            self._acknowledge(done)

    async def _first_frame(self) -> list[Received]:
        """The next frame, once there is one; nothing when told to stop or to move before that."""
        getting = asyncio.create_task(self._queue.get())
        others = {asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._called.wait())}
        await asyncio.wait({getting, *others}, return_when=asyncio.FIRST_COMPLETED)
        self._called.clear()
        for other in others:
            other.cancel()
        if getting.done():
            return [getting.result()]
        getting.cancel()
        return []

    def _acknowledge(self, done: Sequence[Received]) -> None:
        for received in done:
            event: Any = received.token
            event.ack()

    async def _watch_lag(self) -> None:
        while True:
            await asyncio.sleep(_LAG_EVERY_S)
            lag = 0
            for partition, next_offset in self._applier.next_offsets().items():
                end = known_end(self._app.consumer, TP(self._topic.name, partition))
                lag += max(0, (end or 0) - next_offset)
            self._metrics.lag_frames.set(lag)
            self._health.lag(lag)

    async def _watch_tail(self) -> None:
        """Notice a store that went back to an older state while no frames come; its readers would see old rows."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TAIL_CHECK_EVERY_S)
            with suppress(StoreUnavailable):
                await loop.run_in_executor(self._thread, self._applier.check_tail)

    # What is served

    def _open_first(self) -> Served:
        """What is served now; Redis may still be starting."""
        for attempt in stamina.retry_context(on=StoreUnavailable, attempts=None, timeout=None, wait_max=2.0):
            with attempt:
                try:
                    served = self._parts.open(self._parts.serving())
                except StoreUnavailable as error:
                    self._health.block("store", str(error))
                    self._metrics.retries.labels("store_open").inc()
                    _logger.warning("waiting for the store", attempt=attempt.num, error=str(error))
                    raise
        self._health.unblock("store")
        return served

    async def _watch_serving(self) -> None:
        """Load what is to be served next, beside what is served, for the loop to move to between two batches."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SERVING_EVERY_S)
            if monotonic() < self._reload_at:
                continue
            try:
                serving = await loop.run_in_executor(self._loader, self._parts.serving)
                if _is_same(serving, self._next.serving):
                    if self._next is self._served:
                        self._health.unblock("serving")
                    continue
                if _is_same(serving, self._served.serving):
                    self._next = self._served
                    continue
                self._next = await loop.run_in_executor(self._loader, self._parts.open, serving)
                self._called.set()
            except StoreUnavailable:
                continue
            # A model that can't be loaded here never gets in: this worker goes on with the one before.
            except DriftlineError as error:
                self._refuse_next(error)

    def _refuse_next(self, error: DriftlineError) -> None:
        self._reload_at = monotonic() + _RELOAD_EVERY_S
        _logger.error("what was activated can't be served here; going on as before", error=str(error))
        self._health.block("serving", f"what was activated can't be served here: {error}")

    def _move(self) -> None:
        """In the thread that applies."""
        served = self._next
        partitions = [Partition(self._topic.name, number) for number in self._applier.next_offsets()]
        try:
            extents = self._admin.extents(partitions)
            behind = self._applier.move(served.store, served.engine, extents)
        except DriftlineError as error:
            self._refuse_next(error)
            self._next = self._served
            return
        self._served = served
        kafka = self._settings.kafka
        self._read_again(ExtentsReader(kafka, behind, has_gaps=False, fetch_bytes=_REREAD_BYTES) if behind else None)
        self._show_served()

    def _read_again(self, reader: ExtentsReader | None) -> None:
        """Read with this one from now on, until it has read all; in the thread that applies."""
        if self._reread is not None:
            self._reread.close()
        self._reread = reader

    def _apply_again(self, reader: ExtentsReader) -> None:
        """Some frames that the generation moved to lacks; in the thread that applies."""
        if self._reread is not reader:  # a rebalance came first
            return
        found = reader.read(self._settings.evolve.queue_frames, _REREAD_WAIT_S)
        frames = [Received(message.partition, message.offset, message.value or b"") for message in found]
        while frames:
            _, frames = self._applier.apply(frames)
        if not reader.unfinished:
            self._read_again(None)

    async def _sweep_now_and_then(self) -> None:
        """Encode again what other versions wrote, so that rows of users without new events follow a model too."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            if self._settings.evolve.sweep_users_per_second:
                with suppress(StoreUnavailable):
                    await self._sweep()

    async def _sweep(self) -> None:
        """Look once through the partitions of this worker that may have such rows."""
        loop, served = asyncio.get_running_loop(), self._served
        rate, version = self._settings.evolve.sweep_users_per_second, served.engine.model_version
        # Not by the version alone: it may be served again before the one between was looked for to the end.
        activation = f"{version}@{served.serving.since_ms}"
        mine = list(self._applier.next_offsets())
        unswept = await loop.run_in_executor(self._loader, served.sweep.unswept, mine, activation)
        if not unswept:
            return
        found = 0
        steps = served.sweep.outdated(frozenset(unswept), version)
        while (users := await loop.run_in_executor(self._loader, next, steps, None)) is not None:
            found += len(users)
            while users:
                if self._served is not served:
                    return
                some, users = users[:_SWEEP_USERS], users[_SWEEP_USERS:]
                written = await loop.run_in_executor(self._thread, self._applier.refresh, some)
                self._metrics.swept_users.inc(written)
                await asyncio.sleep(len(some) / rate)
            await asyncio.sleep(_SWEEP_STEP_S)
        if found:
            _logger.info("rows of other versions encoded again", users=found, version=version)
            return  # some may have been written meanwhile, and are looked for again
        for partition in set(unswept) & set(self._applier.next_offsets()):
            await loop.run_in_executor(self._loader, served.sweep.record, partition, activation)

    def _show_served(self) -> None:
        serving, engine = self._served.serving, self._served.engine
        _logger.info("serving", generation=serving.generation, model=engine.model_name, version=engine.model_version)
        self._metrics.model.info(
            {
                "name": engine.model_name,
                "version": engine.model_version,
                "provider": self._served.provider,
                "generation": serving.generation,
            }
        )

    def _die(self, error: BaseException) -> NoReturn:
        """End the process here and now: an orderly shutdown would commit."""
        if isinstance(error, DriftlineError):
            _logger.error("evolve ends", error=str(error), exit_code=error.exit_code)
            os._exit(error.exit_code)
        _logger.error("evolve ends: unexpected error", exc_info=error)
        os._exit(_UNEXPECTED)


def _is_same(one: Serving, other: Serving) -> bool:
    return (one.generation, one.model) == (other.generation, other.model)


def _faust_app(settings: Settings) -> faust.App:
    kafka = settings.kafka
    # At debug it logs every request in full, the password of SASL/PLAIN and users' events among them (aiokafka 0.14).
    logging.getLogger("aiokafka.conn").addFilter(_is_no_request)
    return faust.App(
        settings.evolve.group,
        broker=[URL(f"kafka://{server}") for server in kafka.servers],
        broker_credentials=_credentials(kafka),
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.session_timeout_s / 5,
        broker_request_timeout=max(30.0, kafka.session_timeout_s * 2),
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=32,  # frames, not events; the queue above it is the real buffer
        # Topics are made by `driftline topics create`, and Faust's own are not used.
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        datadir=tempfile.gettempdir(),
        web_enabled=False,
    )


def _is_no_request(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def _credentials(kafka: KafkaSettings) -> Any:
    security = kafka.security()
    if security.sasl_mechanism is not None:
        return faust.SASLCredentials(
            username=security.sasl_username,
            password=security.sasl_password,
            mechanism=security.sasl_mechanism,
            ssl_context=security.ssl_context,
        )
    return None if security.ssl_context is None else faust.SSLCredentials(context=security.ssl_context)
