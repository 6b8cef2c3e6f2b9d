"""The demo from start to end: surroundings, traffic, screen, and a summary once everything is applied."""

import errno
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from time import monotonic, sleep, time
from types import FrameType
from typing import Final

import msgspec
from rich.console import Console
from rich.live import Live

from models.bundle import Bundle, read_bundle
from streams.demo.embedded import Embedded
from streams.demo.freshness import FreshnessProbe, percentile
from streams.demo.screen import Figures, line, screen
from streams.demo.traffic import Traffic, visitor_count
from streams.demo.watch import TopicDirections, Watch
from streams.errors import DriftlineError
from streams.log.admin import LogAdmin
from streams.log.producer import Producer
from streams.log.topics import Partition
from streams.observe.logs import configure_logging
from streams.services.bundle import bundle_path
from streams.settings import Settings
from streams.store.redis import RedisStore

_READY_S: Final = 60.0
_DRAIN_S: Final = 30.0
_LOOK_S: Final = 0.05
_FRAME_S: Final = 0.2
_LINE_S: Final = 2.0
_COUNT_S: Final = 1.0
_RATE_OVER_S: Final = 5.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Less than this, and plain lines say more.
_SMALLEST_SCREEN: Final = (60, 20)


class FreshnessSummary(msgspec.Struct, frozen=True):
    """From an event handed to the producer to its vector read back from Redis, milliseconds.

    Attributes:
        samples: Events measured, about 20 a second.
    """

    p50: float | None
    p99: float | None
    samples: int


class DemoSummary(msgspec.Struct, frozen=True):
    """What the demo did, counted in Kafka and Redis after everything was applied.

    Attributes:
        events: Messages on the raw topics, bad ones included; each was applied or dead-lettered.
        recommendations: Messages on the topic `recommendations`; several events of one visitor at once give one.
        dead_letters: Messages on the dead-letter topic.
        users: Rows in Redis.
        bad_events: Events that were broken on purpose.
        seconds: How long the traffic ran.
        events_per_second: What was really reached.
    """

    events: int
    recommendations: int
    dead_letters: int
    users: int
    freshness_ms: FreshnessSummary
    bad_events: int
    seconds: float
    events_per_second: float


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What a person may choose.

    Attributes:
        seconds: How long the traffic runs; None until a signal.
        bundle: The model; None is the demo's.
    """

    events_per_second: float
    seconds: float | None
    bundle: Path | None


class NotApplied(DriftlineError):
    """Events were still on their way when the demo had waited long enough for them."""


class Interrupted(Exception):
    """Told to end at once, without a summary."""


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP: the first asks the demo to sum up and end, the next to end at once.

    A plain count that the loops look at: an Event that a signal handler sets can deadlock with the wait it interrupts.
    """

    def __init__(self) -> None:
        self.count = 0
        self.terminal_closed = False

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Take the signals over; they are given back at the end."""
        before = {number: signal.signal(number, self._note) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self, allowed: int = 0) -> None:
        """Raise `Interrupted` if there were more signals than allowed, or nobody is left to see a result."""
        if self.count > allowed or self.terminal_closed:
            raise Interrupted

    def _note(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.terminal_closed = self.terminal_closed or number == signal.SIGHUP


def run_demo(plan: DemoPlan, console: Console, *, live: bool) -> DemoSummary | None:
    """Run the whole demo, and leave nothing behind.

    Args:
        console: Where to show it.
        live: Show a screen; else plain lines.

    Returns:
        The summary; None when told to end before there was one.

    Raises:
        RedisMissing: There is no redis-server on this machine.
        ChildEnded: A service ended by itself.
        NotApplied: Not all events were applied in time.
        BundleError: The bundle is missing or broken.
    """
    model = read_bundle(bundle_path(plan.bundle))
    signals = StopSignals()
    with signals.handling(), ExitStack() as stack:
        try:
            with _starting(console) as say:
                say("Starting an embedded Redis and an embedded Kafka")
                embedded = stack.enter_context(Embedded(plan.bundle))
                log = stack.enter_context(embedded.log_path("demo").open("w"))
                configure_logging("console", "info", "demo", stream=log)
                say("Starting ingest and evolve, with the model")
                embedded.start_services()
                run = _Run(plan, model, embedded, signals)
                stack.callback(run.close)
                say("Waiting for the first click to arrive: the consumer groups take some seconds")
                run.send_first_click()
            return run.play(console, live=live)
        except Interrupted:
            return None
        except OSError as error:
            # The terminal is gone: nobody is left to tell.
            if error.errno != errno.EIO:
                raise
            return None


class _Run:
    """The clients and threads of one run, on surroundings that are up."""

    def __init__(self, plan: DemoPlan, model: Bundle, embedded: Embedded, signals: StopSignals) -> None:
        self._plan = plan
        self._embedded = embedded
        self._signals = signals
        settings = embedded.settings
        self._log = _LogPositions(settings)
        self._store = RedisStore(settings.redis)
        self._probe = FreshnessProbe(RedisStore(settings.redis), self._log.interactions)
        self._producer = Producer(settings.kafka)
        self._traffic = Traffic(
            self._producer,
            {event_type: topic for topic, event_type in settings.topics.sources.items()},
            visitor_count(plan.events_per_second),
            plan.events_per_second,
            self._probe.offer,
        )
        self._visitor = self._traffic.visitors[0]
        self._watch = Watch(TopicDirections(model.item_vectors, model.vocabulary, model.metadata), model.metadata)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="demo")
        self._stop_traffic = Flag()
        self._stop_probe = Flag()

    def close(self) -> None:
        """End the threads and the connections."""
        self._stop_traffic.set()
        self._stop_probe.set()
        self._threads.shutdown()
        self._log.close()
        self._store.close()

    def send_first_click(self) -> None:
        """Send one event and wait until it is applied: then both services have their partitions."""
        self._traffic.send_from(self._visitor)
        deadline = monotonic() + _READY_S
        while not self._look():
            self._embedded.check()
            self._signals.check()
            if monotonic() > deadline:
                raise NotApplied(
                    f"the first event was not applied within {_READY_S:.0f} s. Is the machine very busy? "
                    f"{self._embedded.log_tail('evolve')}"
                )
            sleep(_LOOK_S)

    def play(self, console: Console, *, live: bool) -> DemoSummary:
        """Let the visitors browse and show it; then wait until everything is applied, and count."""
        started = monotonic()
        probing = self._threads.submit(self._probe.run, self._stop_probe)
        sending = self._threads.submit(self._traffic.run, self._stop_traffic, self._plan.seconds)
        with _showing(console, live=live) as show:
            counter = _Counter(started, self._plan, self._traffic, self._log, self._probe)
            while not sending.done():
                self._turn([sending, probing], counter, show)
                if self._signals.count:
                    self._stop_traffic.set()
                self._signals.check(allowed=1)
            seconds = sending.result()
            allowed = self._signals.count
            deadline = monotonic() + _DRAIN_S
            while not self._log.all_applied(self._store):
                self._turn([probing], counter, show)
                self._signals.check(allowed)
                if monotonic() > deadline:
                    raise NotApplied(
                        f"not all of {self._traffic.sent:,} events were applied {_DRAIN_S:.0f} s after the last one: "
                        f"{self._plan.events_per_second:g} a second are too many for this machine. "
                        "Choose fewer with --events-per-second"
                    )
        self._stop_probe.set()
        probing.result()
        self._probe.settle()
        return self._summary(seconds)

    def _turn(self, futures: Sequence[Future[None] | Future[float]], counter: "_Counter", show: "_Show") -> None:
        sleep(_FRAME_S)
        self._embedded.check()
        for future in futures:
            if future.done():
                future.result()
        self._look()
        show(self._visitor.user_id, self._watch, self._visitor.taste, counter.figures())

    def _look(self) -> bool:
        """Read the watched visitor's row; False while there is none."""
        record = self._store.read_user(self._visitor.user_id)
        if record is not None:
            self._watch.observe(record.row, time())
        return record is not None

    def _summary(self, seconds: float) -> DemoSummary:
        milliseconds = self._probe.all()
        events = self._log.count(self._log.raw)
        return DemoSummary(
            events=events,
            recommendations=self._log.count([self._log.recommendations]),
            dead_letters=self._log.count([self._log.dead_letters]),
            users=sum(1 for _ in self._store.scan_users()),
            freshness_ms=FreshnessSummary(
                _rounded(percentile(milliseconds, 50)), _rounded(percentile(milliseconds, 99)), len(milliseconds)
            ),
            bad_events=self._traffic.bad,
            seconds=round(seconds, 2),
            events_per_second=round(events / seconds, 1),
        )


class _LogPositions:
    """Where the demo's topics end, and how far they are applied."""

    def __init__(self, settings: Settings) -> None:
        self._admin = LogAdmin(settings.kafka, settings.ingest.group)
        names = settings.topics
        self.raw = list(names.sources)
        self.recommendations = names.recommendations
        self.dead_letters = names.dead_letters
        self._interactions = names.interactions
        self._partitions = {
            name: topic.partitions
            for name, topic in self._admin.topics(
                [*self.raw, self._interactions, self.recommendations, self.dead_letters]
            ).items()
        }

    @property
    def interactions(self) -> int:
        """The number of partitions of `interactions`."""
        return self._partitions[self._interactions]

    def close(self) -> None:
        """Close the connections."""
        self._admin.close()

    def count(self, topics: Sequence[str]) -> int:
        """How many messages the topics have ever had."""
        return sum(self._ends(topics).values())

    def all_applied(self, store: RedisStore) -> bool:
        """Whether every message on the raw topics is in Redis or dead-lettered, as `driftline status` decides it."""
        raw_ends = self._ends(self.raw)
        # Ingest commits after its frames are acknowledged, so the frames' log is complete once it has.
        committed = self._admin.committed(raw_ends)
        if any(end > (committed[partition] or 0) for partition, end in raw_ends.items()):
            return False
        ends = self._ends([self._interactions])
        watermarks = store.read_watermarks([partition.number for partition in ends])
        return all(
            end == 0 or ((mark := watermarks[partition.number]) is not None and mark.offset + 1 == end)
            for partition, end in ends.items()
        )

    def _ends(self, topics: Sequence[str]) -> Mapping[Partition, int]:
        partitions = [Partition(topic, number) for topic in topics for number in range(self._partitions[topic])]
        return {partition: extent.end for partition, extent in self._admin.extents(partitions).items()}


class _Counter:
    """Turns running totals into the figures of the screen."""

    def __init__(
        self, started: float, plan: DemoPlan, traffic: Traffic, log: _LogPositions, probe: FreshnessProbe
    ) -> None:
        self._started = started
        self._plan = plan
        self._traffic = traffic
        self._log = log
        self._probe = probe
        self._sent = deque([(started, traffic.sent)])
        self._counted_at = 0.0
        self._recommendations = self._dead_letters = 0

    def figures(self) -> Figures:
        """The figures as they are now; what must be asked of Kafka is up to a second old."""
        now = monotonic()
        self._sent.append((now, self._traffic.sent))
        while now - self._sent[0][0] > _RATE_OVER_S and len(self._sent) > 2:
            self._sent.popleft()
        (then, sent_then), (_, sent) = self._sent[0], self._sent[-1]
        if now - self._counted_at >= _COUNT_S:
            self._counted_at = now
            self._recommendations = self._log.count([self._log.recommendations])
            self._dead_letters = self._log.count([self._log.dead_letters])
        milliseconds = self._probe.recent()
        return Figures(
            elapsed_s=now - self._started,
            seconds=self._plan.seconds,
            visitors=len(self._traffic.visitors),
            events=sent,
            events_per_second=(sent - sent_then) / (now - then),
            recommendations=self._recommendations,
            dead_letters=self._dead_letters,
            p50_ms=percentile(milliseconds, 50),
            p99_ms=percentile(milliseconds, 99),
        )


_Show = Callable[[str, Watch, Mapping[str, float], Figures], None]


@contextmanager
def _starting(console: Console) -> Iterator[Callable[[str], None]]:
    """Says what is being started: beside a spinner on a terminal, in lines elsewhere."""
    if not console.is_terminal:
        yield lambda what: console.print(what, highlight=False, soft_wrap=True)
        return
    with console.status("") as status:
        yield lambda what: status.update(f"{what} …")


@contextmanager
def _showing(console: Console, *, live: bool) -> Iterator[_Show]:
    """Shows the run: as a screen that is gone afterwards, or a line every two seconds."""
    if live and console.width >= _SMALLEST_SCREEN[0] and console.height >= _SMALLEST_SCREEN[1]:
        with Live(console=console, screen=True, auto_refresh=False) as display:

            def draw(visitor: str, watch: Watch, taste: Mapping[str, float], figures: Figures) -> None:
                size = console.size
                display.update(screen(visitor, watch, taste, figures, time(), size.width, size.height), refresh=True)

            yield draw
        return
    next_line_s = 0.0

    def write(visitor: str, watch: Watch, _: Mapping[str, float], figures: Figures) -> None:
        nonlocal next_line_s
        if figures.elapsed_s >= next_line_s:
            next_line_s = figures.elapsed_s + _LINE_S
            console.print(line(visitor, watch, figures), highlight=False, markup=False, soft_wrap=True)

    yield write


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
