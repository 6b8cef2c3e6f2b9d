"""Ingest: raw events in, frames out.

One turn of the loop, in the order that makes a crash harmless at any point:

1. read a batch of raw messages
2. decode and validate; pack the good ones into frames, one builder a partition of `interactions`
3. send the dead letters and wait for the broker's acknowledgement
4. send the frames, at most one a partition at a time, and wait for it
5. commit the raw offsets

A crash before 5 leads to the same events being sent again; evolve knows each by its raw offset and drops it. That
only works if no frame can be lost while a later one of its partition arrives: hence "one at a time", and hence a
frame that Kafka does not accept ends the process before it commits.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from threading import Event as Flag
from time import monotonic, perf_counter, time

import stamina
import structlog

from streams.contracts.dead_letter import DeadLetter
from streams.contracts.event import ERASE, InvalidEvent, decode_event, event_time_ms
from streams.contracts.frame import Frame, FrameBuilder, Source, encode_frame, partition_of
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import DeliveryFailed
from streams.log.admin import LogAdmin
from streams.log.producer import Producer
from streams.log.readers import RawReader
from streams.log.topics import Message, Partition, sources_of
from streams.observe.health import Health
from streams.observe.metrics import IngestMetrics
from streams.settings import Settings

_logger = structlog.get_logger("driftline.ingest")

# Commits are only a place to start from after a crash, and each costs the broker a write.
_COMMIT_EVERY_S = 0.2
_IDLE_WAIT_S = 0.2
_LAG_EVERY_S = 1.0


class Ingest:
    """The ingest service: `run` until `stop`.

    Raises:
        SettingsError: The key of pseudonyms cannot be used.
        LogError, AuthenticationFailed, TopicMissing: Kafka can't be reached, or lacks a topic.
    """

    def __init__(self, settings: Settings, metrics: IngestMetrics, health: Health) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._stopping = Flag()
        self._pseudonyms = Pseudonyms(settings.ingest.pseudonym_key())
        topics = settings.topics
        with LogAdmin(settings.kafka) as admin:
            sources = admin.topics(topics.sources)
            others = admin.topics([topics.interactions, topics.dead_letters])
        self._partitions = others[topics.interactions].partitions
        self._sources: Mapping[Partition, Source] = dict(sources_of(sources))
        self._reader = RawReader(settings.kafka, settings.ingest.group, sources, settings.ingest.linger_ms / 1000)
        self._frames = Producer(settings.kafka)
        # A producer of its own: a dead-letter topic that fails must not fail the frames.
        self._letters = Producer(settings.kafka, delivery_timeout_s=10.0)
        self._uncommitted: dict[Partition, int] = {}
        self._committed_at = monotonic()
        self._lag_at = monotonic()

    def stop(self) -> None:
        """Finish the batch under way, then let `run` return. Safe to call from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Read, pack, send and commit until `stop`."""
        self._reader.subscribe(before_revoke=self._hand_over, after_loss=self._uncommitted.clear)
        self._health.started()
        _logger.info("reading", topics=sorted(self._settings.topics.sources), partitions=self._partitions)
        try:
            while not self._stopping.is_set():
                self._turn()
            self._commit(wait=True)
        finally:
            self._reader.close()

    def _turn(self) -> None:
        settings = self._settings.ingest
        messages = self._reader.read(settings.batch_events, _IDLE_WAIT_S)
        if messages:
            started = perf_counter()
            frames, letters = self._pack(messages)
            if letters and not self._bury(letters):
                return  # told to stop while the dead-letter topic was away: nothing of this batch is committed
            self._send(frames)
            for message in messages:
                self._uncommitted[Partition(message.topic, message.partition)] = message.offset + 1
            self._metrics.batch_seconds.observe(perf_counter() - started)
            self._health.progress()
        if not messages:
            self._commit(wait=True)  # nothing else will, and an answer that nobody looks at may be a refusal
        elif monotonic() - self._committed_at >= _COMMIT_EVERY_S:
            self._commit(wait=False)
        if monotonic() - self._lag_at >= _LAG_EVERY_S:
            self._lag_at = monotonic()
            lag = self._reader.lag()
            self._metrics.lag_events.set(lag)
            self._health.lag(lag)

    def _pack(self, messages: Sequence[Message]) -> tuple[dict[int, list[Frame]], list[DeadLetter]]:
        settings = self._settings.ingest
        types = self._settings.topics.sources
        now_ms = round(time() * 1000)
        builders: dict[int, FrameBuilder] = {}
        letters = []
        for message in messages:
            stage = "decode"
            try:
                event = decode_event(message.value, settings.max_event_bytes)
                stage = "validate"
                appended_ms = message.timestamp_ms if message.timestamp_ms > 0 else now_ms
                time_ms = event_time_ms(event, appended_ms, now_ms)
            except InvalidEvent as error:
                letters.append(_letter(message, error, stage))
                continue
            if self._pseudonyms:
                event = self._pseudonyms.in_event(event)
            if event.type == ERASE:
                # Dated in the future, as by a clock that is ahead, it would keep out what the person does next.
                appended_ms = min(appended_ms, now_ms)
            partition = partition_of(event.window_of, self._partitions)
            builder = builders.get(partition)
            if builder is None:
                builder = builders[partition] = FrameBuilder(settings.frame_events, settings.frame_bytes)
            builder.add(
                event,
                self._sources[Partition(message.topic, message.partition)],
                message.offset,
                appended_ms,
                event.type or types[message.topic],
                time_ms,
                len(message.value or b""),
            )
        return {partition: builder.take() for partition, builder in builders.items()}, letters

    def _bury(self, letters: Sequence[DeadLetter]) -> bool:
        """Send dead letters until the broker has them; False when told to stop before that.

        While they can't be written nothing is read and nothing is committed: a bad event is kept, never dropped.
        """
        topic = self._settings.topics.dead_letters
        for attempt in stamina.retry_context(
            on=DeliveryFailed, attempts=None, timeout=None, wait_initial=0.2, wait_max=2.0
        ):
            with attempt:
                if attempt.num > 1 and self._stopping.is_set():
                    return False
                try:
                    for letter in letters:
                        self._letters.send(topic, letter.value, letter.key, headers=letter.all_headers())
                    self._letters.flush()
                except DeliveryFailed as error:
                    self._health.block("dead_letters", f"the dead-letter topic {topic} can't be written: {error}")
                    _logger.error("dead letters not written; ingest waits", topic=topic, error=str(error))
                    raise
        self._health.unblock("dead_letters")
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()
        self._metrics.events.labels("dead_lettered").inc(len(letters))
        _logger.warning(
            "dead-lettered",
            count=len(letters),
            first=letters[0].message,
            topic=letters[0].topic,
            partition=letters[0].partition,
            offset=letters[0].offset,
        )
        return True

    def _send(self, frames: Mapping[int, Sequence[Frame]]) -> None:
        topic = self._settings.topics.interactions
        started = perf_counter()
        for one_each in zip_longest(*frames.values()):
            for partition, frame in zip(frames, one_each, strict=True):
                if frame is not None:
                    self._frames.send(topic, encode_frame(frame), partition=partition)
                    self._metrics.frames.inc()
                    self._metrics.frame_events.observe(len(frame))
                    self._metrics.events.labels("accepted").inc(len(frame))
            self._frames.flush()
        self._metrics.produce_seconds.observe(perf_counter() - started)

    def _hand_over(self) -> None:
        self._commit(wait=True)
        # Committed or not, these partitions are another's now, and a late commit would set it back.
        self._uncommitted.clear()

    def _commit(self, *, wait: bool) -> None:
        self._committed_at = monotonic()
        # Offsets only become certain with an answer; those that were merely sent are sent again when it is quiet.
        if self._uncommitted and self._reader.commit(self._uncommitted, wait=wait) and wait:
            self._uncommitted.clear()


def _letter(message: Message, error: InvalidEvent, stage: str) -> DeadLetter:
    return DeadLetter(
        message.value,
        message.key,
        message.headers,
        error.reason,
        str(error),
        message.topic,
        message.partition,
        message.offset,
        stage,
        message.timestamp_ms if message.timestamp_ms > 0 else None,
    )
