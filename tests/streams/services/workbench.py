"""An `interactions` topic, an outbox and an ingest in memory: what an `Applier` needs around it, and no more."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from models.bundle import Bundle
from models.spec import Vectors
from models.windows import WindowInputs
from streams.contracts.dead_letter import Headers
from streams.contracts.event import IDENTIFY, Event
from streams.contracts.frame import FrameBuilder, Source, encode_frame, partition_of
from streams.interest.encode import Encoder
from streams.interest.engine import Engine, EngineRules, VectorEncoder
from streams.interest.window import decode_state
from streams.log.topics import Extent, Partition, Topic
from streams.observe.health import Health
from streams.observe.metrics import EvolveMetrics
from streams.services.applier import Applier, EngineLike, Outbox, Received
from streams.settings import EvolveSettings, RecommendationSettings, Settings
from streams.store.memory import MemoryErasures
from streams.store.protocol import ErasureStore, StateStore

CLICKS = Source("clicks", "id-of-clicks", 0)
VIEWS = Source("views", "id-of-views", 0)
NOW_MS = 1_767_225_600_000
RECOMMENDATIONS = "recommendations"
DEAD_LETTERS = "events.dlq"
MEMORY = 5


class RawEvent(NamedTuple):
    """An event as it lies in a raw topic, decoded."""

    user: str
    item: str
    offset: int
    time_ms: int = NOW_MS
    event_id: str | None = None
    source: Source = CLICKS
    type: str = "click"
    appended_ms: int = 0

    @property
    def kafka_ms(self) -> int:
        """When it came into Kafka; unless said otherwise, when it happened."""
        return self.appended_ms or self.time_ms

    @property
    def id(self) -> str:
        """Its own id, or the one that its place gives it."""
        return self.event_id or f"{self.source.topic}-{self.source.partition}-{self.offset}"

    @property
    def decoded(self) -> Event:
        """As ingest decodes it; of `$identify` the user is the anonymous one, the item the one that it is."""
        if self.type == IDENTIFY:
            return Event(self.item, type=IDENTIFY, anonymous_id=self.user, event_id=self.event_id)
        return Event(self.user, self.item, self.type, event_id=self.event_id)


def pack(events: Sequence[RawEvent], partitions: int, max_events: int = 1000) -> dict[int, list[bytes]]:
    """What ingest makes of a batch: frames by partition of `interactions`."""
    builders: dict[int, FrameBuilder] = {}
    for event in events:
        builder = builders.setdefault(partition_of(event.user, partitions), FrameBuilder(max_events, 10**6))
        builder.add(
            event.decoded,
            event.source,
            event.offset,
            event.kafka_ms,
            event.type,
            event.time_ms,
            100,
        )
    return {partition: [encode_frame(frame) for frame in builder.take()] for partition, builder in builders.items()}


class InteractionsLog:
    """The `interactions` topic, and the offsets that the group of evolve has committed."""

    def __init__(self, partitions: int = 1, topic_id: str = "id-of-interactions") -> None:
        self.topic = Topic("interactions", topic_id, partitions)
        self.starts = dict.fromkeys(range(partitions), 0)
        self.frames: dict[int, list[bytes]] = {partition: [] for partition in range(partitions)}
        self.committed: dict[Partition, int | None] = {}

    def append(self, partition: int, raw: bytes) -> int:
        """Returns the frame's offset."""
        self.frames[partition].append(raw)
        return len(self.frames[partition]) - 1

    def append_events(self, *events: RawEvent) -> None:
        """One frame a partition."""
        for partition, frames in pack(events, self.topic.partitions).items():
            for raw in frames:
                self.append(partition, raw)

    def read(self, partition: int, offset: int, count: int = 10**9) -> list[Received]:
        """Frames from an offset on."""
        frames = self.frames[partition][offset : offset + count]
        return [Received(partition, number, raw) for number, raw in enumerate(frames, offset)]

    @property
    def extents(self) -> dict[Partition, Extent]:
        """Where each partition starts and ends."""
        return {
            Partition(self.topic.name, partition): Extent(self.starts[partition], len(frames))
            for partition, frames in self.frames.items()
        }

    def commit(self, partition: int, next_offset: int) -> None:
        """Record where the group goes on."""
        self.committed[Partition(self.topic.name, partition)] = next_offset


class Letter(NamedTuple):
    """A message that the outbox took."""

    topic: str
    value: bytes | None
    key: bytes | str | None
    headers: Headers
    partition: int = -1


class RecordingOutbox:
    """An outbox that remembers; ``delivered`` is what was sent before a flush that returned.

    Args:
        log: Where frames that are sent to it arrive.
    """

    def __init__(self, log: InteractionsLog | None = None) -> None:
        self._log = log
        self.sent: list[Letter] = []
        self.delivered: list[Letter] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
    ) -> None:
        self.sent.append(Letter(topic, value, key, headers, partition))

    def flush(self) -> None:
        for letter in self.sent:
            if self._log is not None and letter.topic == self._log.topic.name:
                self._log.append(letter.partition, letter.value or b"")
        self.delivered += self.sent
        self.sent = []

    def recommendations(self) -> list[Letter]:
        return [letter for letter in self.delivered if letter.topic == RECOMMENDATIONS]

    def dead_letters(self) -> list[Letter]:
        return [letter for letter in self.delivered if letter.topic == DEAD_LETTERS]


class PoisonedEncoder:
    """An encoder that raises while one of some item rows is in a window; ``calls``: so often, and then no more."""

    def __init__(
        self, inner: VectorEncoder, rows: set[int], error: Callable[[], Exception], calls: int | None = None
    ) -> None:
        self._inner, self._rows, self._error, self._calls = inner, rows, error, calls

    def encode(self, inputs: WindowInputs) -> Vectors:
        if self._rows & set(inputs.items.ravel().tolist()) and self._calls != 0:
            self._calls = None if self._calls is None else self._calls - 1
            raise self._error()
        return self._inner.encode(inputs)

    def encode_posterior(self, inputs: WindowInputs) -> tuple[Vectors, Vectors]:
        return self._inner.encode_posterior(inputs)

    def verify(self) -> None:
        self._inner.verify()


def settings_of(batch_users: int = 512) -> Settings:
    return Settings(
        evolve=EvolveSettings(batch_users=batch_users, dedupe_memory=MEMORY),
        recommendations=RecommendationSettings(k=3),
    )


def engine_of(bundle: Bundle, encoder: VectorEncoder | None = None) -> Engine:
    return Engine(bundle, encoder or Encoder(bundle, "cpu"), EngineRules(3, True, 1, MEMORY, "g1"))


@dataclass
class Worker:
    """An applier as evolve uses it: frames come in by partition, what is done with is committed."""

    log: InteractionsLog
    store: StateStore
    engine: EngineLike
    outbox: Outbox
    settings: Settings = field(default_factory=settings_of)
    erasures: ErasureStore = field(default_factory=MemoryErasures)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.health = Health(30.0)
        self.health.started()
        self.backlog: list[Received] = []
        self.next_offsets: dict[int, int] = {}
        self.applier = Applier(
            self.settings,
            self.log.topic,
            self.store,
            self.engine,
            self.outbox,
            EvolveMetrics.on(self.registry),
            self.health,
            self.erasures,
        )

    def assign(self, partitions: Sequence[int] | None = None, *, rebuild: bool = False) -> dict[int, int]:
        """Take partitions over, all of them unless given; reading goes on where the applier says."""
        mine = list(range(self.log.topic.partitions)) if partitions is None else list(partitions)
        self.next_offsets = self.applier.assign(mine, self.log.extents, self.log.committed, rebuild=rebuild)
        for partition, offset in self.next_offsets.items():
            self.log.commit(partition, offset)
        return self.next_offsets

    def fetch(self, partition: int, count: int = 10**9) -> int:
        """Read frames into the backlog; returns how many."""
        frames = self.log.read(partition, self.next_offsets[partition], count)
        self.next_offsets[partition] += len(frames)
        self.backlog += frames
        return len(frames)

    def apply(self) -> list[Received]:
        """Apply one batch of the backlog and commit what is done with."""
        done, self.backlog = self.applier.apply(self.backlog)
        for received in done:
            self.log.commit(received.partition, received.offset + 1)
        return done

    def drain(self) -> list[Received]:
        """Read and apply until the log is at its end."""
        done: list[Received] = []
        for partition in self.next_offsets:
            self.fetch(partition)
        while self.backlog:
            done += self.apply()
        return done

    def events(self) -> dict[str, int]:
        """Counted events by outcome; those without any left out."""
        return dict(_samples(self.registry, "driftline_evolve_events_total", "outcome"))

    def dead_letters(self) -> dict[str, int]:
        """Counted dead letters by reason."""
        return dict(_samples(self.registry, "driftline_evolve_dead_letters_total", "reason"))

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.registry.get_sample_value(f"driftline_evolve_{name}", labels) or 0.0


def _samples(registry: CollectorRegistry, name: str, label: str) -> Iterator[tuple[str, int]]:
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name == name and sample.value:
                yield sample.labels[label], round(sample.value)


def windows_of(store: StateStore) -> Mapping[str, list[tuple[int, str, str, str]]]:
    """Every user's window as (time, event id, item, type)."""
    windows = {}
    for record in store.scan_users():
        state = decode_state(record.row.state)
        windows[record.user_id] = list(zip(state.times, state.ids, state.items, state.types, strict=True))
    return windows
