"""Filling a generation by its plan: any number of these work side by side, on any number of machines.

Each takes a share that nobody fills, and keeps it with a claim that runs out when it dies:

1. claim the partitions of the share, and read how far they are
2. read on from there, and advance the windows; now and then they are written, and the progress after them
3. encode every window that was moved, and record that the partitions are done
4. give the claim back

When all shares are done, the plan is extended to where the log ends by then, until that is soon done, and then forgotten.
A crash anywhere leaves what the last recorded progress says, and windows ahead of it, which tell so themselves
(`filler`); whoever claims the share next goes on from there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from time import sleep, time
from typing import Final

import stamina
import structlog
from msgspec.structs import replace

from streams.contracts.frame import Source, partition_of
from streams.contracts.generation import Plan, Progress, SourceRange
from streams.errors import StateRefused, StoreUnavailable, UsageError
from streams.interest.engine import Engine
from streams.log.admin import LogAdmin
from streams.log.producer import Producer
from streams.log.readers import RangeReader
from streams.log.topics import Message, Partition
from streams.services.backfill.controls import Controls
from streams.services.backfill.events import Batch, SourceEvent
from streams.services.backfill.filler import Lists, PartitionFiller
from streams.services.backfill.planning import extents_of, is_last_round, next_round, progress_of, source_of
from streams.settings import Settings
from streams.store.protocol import Watermark
from streams.store.redis import RedisStore
from streams.store.redis.erasures import RedisErasures
from streams.store.redis.filling import ClaimLost, RedisFilling

_logger = structlog.get_logger("driftline.backfill")

_READ_WAIT_S: Final = 1.0
_WAIT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker holds in memory.

    Attributes:
        cache_bytes: Windows of all partitions that it fills at the same time.
        step_bytes, step_events: Frames, or events of another source, that are taken together. The more events of a user
            there are among them, the less often the user's window is packed and unpacked.
        read_frames: That are read at a time, and may be more than a step.
    """

    cache_bytes: int = 256 * 1024 * 1024
    step_bytes: int = 4 * 1024 * 1024
    step_events: int = 60_000
    read_frames: int = 50


class SentLists:
    """Sends lists to a topic, keyed by user."""

    def __init__(self, producer: Producer, topic: str, every: int) -> None:
        self.every = every
        self._producer = producer
        self._topic = topic

    def send(self, lists: Mapping[str, bytes]) -> None:
        """See `streams.services.backfill.filler.Lists`."""
        for user, recommendations in lists.items():
            self._producer.send(self._topic, recommendations, user)
        self._producer.flush()


DEFAULT_LIMITS: Final = Limits()


class FillingWorker:
    """Fills the generation of the settings.

    Args:
        filling: Of that generation.
        is_stopped: Asked now and then: whether to write what there is and return.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        filling: RedisFilling,
        is_stopped: Callable[[], bool],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._settings = settings
        self._name = settings.redis.generation
        self._engine = engine
        self._is_stopped = is_stopped
        self._filling = filling
        self._limits = limits
        self._erasures = RedisErasures(settings.redis)
        self._admin = LogAdmin(settings.kafka, settings.evolve.group)
        self._producer: Producer | None = None

    def close(self) -> None:
        """Close the connections; that of ``filling`` is the caller's."""
        self._erasures.close()
        self._admin.close()

    def run(self) -> None:
        """Work until the plan is done. While Redis is away, wait: what it has not got is made again from the log.

        Raises:
            UsageError, StateRefused, WatermarkMoved, EncoderFailed, DataError: It can't go on.
            LogUnavailable, LogGap, TopicMissing, DeliveryFailed, AuthenticationFailed: Kafka says so.
        """
        for attempt in stamina.retry_context(
            on=StoreUnavailable, attempts=None, timeout=None, wait_initial=0.1, wait_max=5.0
        ):
            with attempt:
                try:
                    while not self._is_stopped() and self._work():
                        pass
                except StoreUnavailable as error:
                    _logger.warning("trying again", attempt=attempt.num, error=str(error))
                    raise

    def _work(self) -> bool:
        """Do the next thing that there is to do; False when nothing is left."""
        plan = self._filling.plan()
        if plan is None:
            return False
        self._check(plan)
        open_shares = self._open_shares(plan)
        if not open_shares:
            self._go_on_or_end(plan)
        elif not any(self._fill(plan, share) for share in open_shares):
            sleep(_WAIT_S)  # others fill them; if one dies, its claim runs out
        return True

    def _check(self, plan: Plan) -> None:
        if plan.model != self._engine.model_version:
            raise UsageError(
                f"the backfill of {self._name} was begun with version {plan.model} of a model, and this worker has "
                f"{self._engine.model_version}. Start it with the same --bundle"
            )
        name = self._settings.topics.interactions
        found = self._admin.topics([name])[name]
        if found.topic_id != plan.topic_id:
            raise StateRefused(
                f"topic {name} was deleted and made anew while {self._name} was filled from it. Drop the generation "
                f"(`driftline generations drop {self._name}`) and begin anew"
            )

    def _open_shares(self, plan: Plan) -> list[int]:
        progress = self._progress(plan)
        return [
            share
            for share in range(plan.shares)
            if not all(progress[partition].is_done for partition in plan.partitions_of(share))
        ]

    def _progress(self, plan: Plan) -> Mapping[int, Progress]:
        return progress_of(self._name, plan, self._filling.progress(range(plan.partitions)))

    # One share

    def _fill(self, plan: Plan, share: int) -> bool:
        """Fill a share; False if somebody else does."""
        partitions = plan.partitions_of(share)
        # 1. Claim.
        if not self._filling.claim(partitions):
            return False
        try:
            progress = self._progress(plan)  # as of now: the one before may have done some of it
            waiting = {number: progress[number] for number in partitions if not progress[number].is_done}
            if plan.request.source == "interactions":
                for number, of_partition in waiting.items():
                    self._fill_from_frames(plan, plan.ranges[number], of_partition)
            elif waiting:
                self._fill_from_events(plan, waiting)
        except ClaimLost as error:
            _logger.warning("share given up", share=share, reason=str(error))
        finally:
            # 4. Give back.
            with suppress(StoreUnavailable):
                self._filling.release(partitions)
        return True

    def _fill_from_frames(self, plan: Plan, extent: SourceRange, progress: Progress) -> None:
        applied = self._applied(plan, extent.partition)
        filler = self._filler(plan, extent.partition, progress, self._limits.cache_bytes, applied)
        # 2. Read and advance.
        if progress.next < extent.end:
            partition = Partition(extent.topic, extent.partition)
            with closing(RangeReader(self._settings.kafka, partition, progress.next, extent.end)) as reader:
                for messages in _steps_of_frames(reader, self._limits):
                    is_whole = not messages or filler.add(messages)
                    self._filling.keep({extent.partition: filler.progress})
                    if self._is_stopped():
                        filler.flush()
                        return
                    if not is_whole:
                        break
        # 3. Encode.
        filler.finish(self._is_stopped)

    def _applied(self, plan: Plan, partition: int) -> int:
        """The offset before which live workers have applied every frame, by the served rows, or by Kafka if these are lost."""
        with closing(RedisStore(self._settings.redis, plan.beside)) as served:
            watermark = served.read_watermarks([partition])[partition]
        if watermark is not None and watermark.topic_id == plan.topic_id:
            return watermark.offset + 1
        key = Partition(self._settings.topics.interactions, partition)
        return self._admin.committed([key])[key] or 0

    def _fill_from_events(self, plan: Plan, progress: Mapping[int, Progress]) -> None:
        cache_bytes = self._limits.cache_bytes // len(progress)
        controls = self._controls(plan, progress)
        if controls is None:
            return
        fillers = {number: self._filler(plan, number, each, cache_bytes) for number, each in progress.items()}
        source = source_of(plan, self._settings)
        # 2. Read all of it, and advance the windows of the share's users.
        first = min(each.next for each in progress.values())
        batches = self._until_stopped(source.read(first), fillers)
        for step in _steps_of_events(batches, self._limits.step_events):
            of_partition: dict[int, list[SourceEvent]] = defaultdict(list)
            for event in step.events:
                settled = controls.settle(event)
                if settled is not None:
                    of_partition[partition_of(settled.user_id, plan.partitions)].append(settled)
            for number, filler in fillers.items():
                # Whose events they would have been, nobody knows: they are counted once.
                filler.add_events(of_partition[number], step.next, step.bad if number == 0 else ())
        if self._is_stopped():
            for filler in fillers.values():
                filler.flush()
            return
        if 0 in fillers and source.bad.total:
            _logger.warning("records that are no events", by_reason=source.bad.by_reason, such_as=source.bad.examples)
        # 3. Encode.
        for filler in fillers.values():
            filler.finish(self._is_stopped)

    def _until_stopped(self, batches: Iterator[Batch], fillers: Mapping[int, PartitionFiller]) -> Iterator[Batch]:
        """Pass batches on, up to where the worker is told to stop, and keep the claims meanwhile.

        After each of them, not after each step: what was filled before is read too, and may be long.
        """
        for batch in batches:
            yield batch
            self._filling.keep({number: filler.progress for number, filler in fillers.items()})
            if self._is_stopped():
                return

    def _controls(self, plan: Plan, progress: Mapping[int, Progress]) -> Controls | None:
        """Read all of the source for its control events, and record the erasures; None: told to stop."""
        _logger.info("looking for $erase and $identify")
        controls = Controls(self._erasures.read())
        for batch in source_of(plan, self._settings).read(only_controls=True):
            controls.add(batch.events)
            self._filling.keep(progress)
            if self._is_stopped():
                return None
        if controls.erased:
            # Live workers have done so, unless they wrote to another store or that one was lost.
            self._erasures.record(controls.erased)
        return controls

    def _filler(
        self, plan: Plan, partition: int, progress: Progress, cache_bytes: int, applied: int | None = None
    ) -> PartitionFiller:
        return PartitionFiller(
            self._filling,
            self._engine,
            partition,
            topic_id=plan.topic_id,
            partitions=plan.partitions,
            rule=self._engine.window_rule,
            memory=self._settings.evolve.dedupe_memory,
            progress=progress,
            cache_bytes=cache_bytes,
            erasures=self._erasures,
            applied=applied,
            seal=_seal(plan, partition) if plan.seals else None,
            lists=self._lists(plan),
        )

    def _lists(self, plan: Plan) -> Lists | None:
        request = plan.request
        if not request.recommendations:
            return None
        if self._producer is None:
            self._producer = Producer(self._settings.kafka)
        return SentLists(self._producer, request.recommendations, request.every)

    # All shares

    def _go_on_or_end(self, plan: Plan) -> None:
        """Extend a plan that is done to where the log ends by now, or forget it if that is not far."""
        now_ms = round(time() * 1000)
        if is_last_round(plan, now_ms):
            self._filling.end(plan)
            return
        following = next_round(plan, self._admin.extents(extents_of(plan)), now_ms)
        progress = {number: replace(each, is_done=False) for number, each in self._progress(plan).items()}
        self._filling.begin(following, progress, plan)  # unless another worker was the faster


def _seal(plan: Plan, partition: int) -> Watermark:
    seal = plan.seals[partition]
    marks = {Source(mark.topic, mark.topic_id, mark.partition): mark.offset for mark in seal.marks}
    return Watermark(seal.offset, plan.topic_id, plan.partitions, marks)


def _steps_of_frames(reader: RangeReader, limits: Limits) -> Iterator[list[Message]]:
    """The messages in order, some at a time; nothing where none came for a moment."""
    messages: list[Message] = []
    size = 0
    while reader.unfinished:
        read = reader.read(limits.read_frames, _READ_WAIT_S)
        messages += read
        size += sum(len(message.value or b"") for message in read)
        if size >= limits.step_bytes or not read:
            yield messages
            messages, size = [], 0
    if messages:
        yield messages


def _steps_of_events(batches: Iterator[Batch], step_events: int) -> Iterator[Batch]:
    """Larger batches."""
    events: list[SourceEvent] = []
    bad: list[int] = []
    end = 0
    for batch in batches:
        events += batch.events
        bad += batch.bad
        end = batch.next
        if len(events) >= step_events:
            yield Batch(end, events, bad)
            events, bad = [], []
    if end:
        yield Batch(end, events, bad)
