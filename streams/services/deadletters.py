"""Dead letters: which there are, what is in one, and sending them back to where they came from.

A replay sends each letter's message back as it was, and then writes a mark beside the letter
(`streams.contracts.dead_letter`), in this order, a batch at a time:

1. send the messages and wait for Kafka's acknowledgement
2. write the marks and wait for it

A letter with a mark is not sent again. A crash, or a delivery failure, between the two leaves a batch without its marks:
those letters are sent again by the next replay. So a replay is at least once, and an event that has an event id still
counts once. Ingest may write a letter twice after a crash: those are one message, and it is sent back once.

A message that fails again becomes a new letter, and the header that came with it says how often it was sent back. That
header does not outlive a frame, so for events that the *model* failed on the marks of letters with the same content are
counted instead: such a letter holds the whole event, its id included, and is the same bytes each time.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from streams.contracts.dead_letter import (
    REASONS,
    DeadLetter,
    Headers,
    Replay,
    mark_headers,
    read_letter,
    read_mark,
    replay_headers,
)
from streams.contracts.erasure import Erasures
from streams.contracts.pseudonym import Pseudonyms
from streams.errors import DataError, DeliveryFailed, DriftlineError, UsageError
from streams.log.topics import Extent, Message, Partition, Topic
from streams.services.pull import FrameReader, read_to_end

_BATCH_LETTERS: Final = 500
_BATCH_BYTES: Final = 1024 * 1024

LeftOut = Literal[
    "sent_back_before", "too_often", "erased", "pseudonyms", "copies", "frames", "not_a_source", "no_such_topic"
]

EXPLAINED: Final[Mapping[LeftOut, str]] = {
    "sent_back_before": "sent back by an earlier replay",
    "too_often": "failed again after being sent back as often as --max-replays allows",
    "erased": "of somebody who was erased after the event",
    "pseudonyms": "the model failed on them, so they name users by their pseudonyms: ingest would take these for ids",
    "copies": "written twice by ingest after a crash, or by evolve: sent back once",
    "frames": "frames of interactions: evolve would refuse the same bytes again",
    "not_a_source": "from a topic that is not in topics.sources, so no ingest would read it",
    "no_such_topic": "from a topic that Kafka does not have any more",
}
"""Why letters are not sent back, for people."""


class Origin(Struct, frozen=True):
    """Where the original message is, or was."""

    topic: str
    partition: int
    offset: int


class Letter(Struct, frozen=True):
    """A dead letter in brief.

    Attributes:
        partition, offset: Where it lies in the dead-letter topic.
        written_at: When it was written, milliseconds since 1970.
        replays: How often its event had been sent back before it died this time.
        sent_back: A replay has sent this letter back.
    """

    partition: int
    offset: int
    written_at: int
    reason: str
    source: Origin
    stage: str
    message: str
    replays: int
    sent_back: bool


class LetterList(Struct, frozen=True):
    """What `driftline deadletters list` found.

    Attributes:
        matching: Letters that the filters let through.
        by_reason: Of those, the commonest reason first.
        letters: The newest of them, oldest first.
        others: Messages of the topic that are neither letters nor marks.
    """

    topic: str
    matching: int
    by_reason: dict[str, int]
    letters: list[Letter]
    others: int


class Content(Struct, frozen=True):
    """Bytes for people and scripts: as text where they are UTF-8, else as hex digits; both null where there are none."""

    text: str | None
    hex: str | None


class NamedContent(Struct, frozen=True):
    """A header."""

    name: str
    value: Content


class WholeLetter(Struct, frozen=True):
    """Everything of one letter; ``timestamp``, of the original message, is null where the letter does not say it."""

    letter: Letter
    timestamp: int | None
    key: Content
    headers: list[NamedContent]
    value: Content


class SentBack(Struct, frozen=True):
    """What became of the letters that were to be sent back: how many were, and why Kafka did not accept others, by place."""

    sent: int
    refused: dict[str, str]


class Replayed(Struct, frozen=True):
    """What `driftline deadletters replay` did, or would do.

    Attributes:
        matching: Letters that the filters let through.
        to_send: Of those, to be sent back; by source topic.
        sent: How many were; 0 in a dry run.
        refused: Those that Kafka did not accept, by their place, and why.
        left_out: How many of them are not, by reason (`EXPLAINED`).
        not_reached: Beyond --limit.
    """

    executed: bool
    matching: int
    to_send: dict[str, int]
    sent: int
    refused: dict[str, str]
    left_out: dict[LeftOut, int]
    not_reached: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; what is empty or None lets everything through.

    Attributes:
        topics: Source topics.
        from_ms, to_ms: When the letter was written: from, and before.
    """

    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    from_ms: int | None = None
    to_ms: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(self.reasons - set(REASONS))
        if unknown:
            raise UsageError(f"--reason {', '.join(unknown)}: no such reason; there are {', '.join(REASONS)}")
        if self.from_ms is not None and self.to_ms is not None and self.from_ms >= self.to_ms:
            raise UsageError("--from-datetime should be before --to-datetime")

    def lets_through(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or letter.source.topic in self.topics)
            and (self.from_ms is None or letter.written_at >= self.from_ms)
            and (self.to_ms is None or letter.written_at < self.to_ms)
        )


class _Place(NamedTuple):
    """Where a letter lies."""

    partition: int
    offset: int


class _Identity(NamedTuple):
    """What makes two letters one: the same original message.

    Attributes:
        origin: Its place and its bytes.
        event: The event that the model failed on, wherever it was; b"" for other letters.
    """

    origin: bytes
    event: bytes


class _Who(Struct, frozen=True):
    """Whom a message is about, as far as it says; it may be no event at all."""

    user_id: Any = None
    anonymous_id: Any = None


@dataclass(frozen=True, slots=True)
class ErasedLetters:
    """Tells the letters of people who were erased after their events.

    Attributes:
        pseudonyms: What rows and erasures have in the place of ids.
    """

    erasures: Erasures
    pseudonyms: Pseudonyms

    def include(self, letter: DeadLetter, written_ms: int) -> bool:
        """Whether a letter is one of them.

        Args:
            written_ms: When the letter was: it stands in where the letter does not say when its message was.
        """
        if not self.erasures:
            return False
        try:
            who = _who_decoder.decode(letter.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        time_ms = written_ms if letter.timestamp_ms is None else letter.timestamp_ms
        ids = [each for each in (who.user_id, who.anonymous_id) if isinstance(each, str)]
        # Those of evolve come from frames.
        in_rows = ids if letter.stage == "encode" else map(self.pseudonyms.of, ids)
        return any(self.erasures.covers(each, time_ms) for each in in_rows)


_who_decoder = msgspec.json.Decoder(_Who)


@dataclass(slots=True)
class Survey:
    """The letters of a topic, without their contents: some 500 bytes of memory each.

    Attributes:
        erased: Tells those of people who were erased.
        others: Messages that are neither letters nor marks.
    """

    erased: ErasedLetters = field(default_factory=lambda: ErasedLetters(Erasures(), Pseudonyms(None)))
    others: int = 0
    _letters: dict[_Place, Letter] = field(default_factory=dict)
    _identities: dict[_Place, _Identity] = field(default_factory=dict)
    _sent_back: dict[bytes, int] = field(default_factory=dict)  # origin to how often its event was sent back then
    _of_event: dict[bytes, set[bytes]] = field(default_factory=dict)  # origins sent back, by event
    _of_erased: set[_Place] = field(default_factory=set)

    def add(self, message: Message) -> None:
        """Take in the next message of its partition."""
        place = _Place(message.partition, message.offset)
        found = read_letter(message.value, message.key, message.headers)
        if found is None:
            mark = read_mark(message.value, message.headers)
            if mark is None:
                self.others += 1
                return
            identity = self._identities.get(_Place(mark.partition, mark.offset))
            if identity is not None:  # else retention has deleted the letter and not yet its mark
                self._sent_back[identity.origin] = mark.times
                if identity.event:
                    self._of_event.setdefault(identity.event, set()).add(identity.origin)
            return
        replay = found.replay()
        self._identities[place] = _identity(found)
        self._letters[place] = _brief(message, found, 0 if replay is None else replay.times)
        if self.erased.include(found, message.timestamp_ms):
            self._of_erased.add(place)

    def letters(self) -> Iterator[Letter]:
        """Every letter, those of one partition in their order."""
        for place, letter in self._letters.items():
            origin, event = self._identities[place]
            times = self._sent_back.get(origin)
            replays = max(letter.replays, len(self._of_event.get(event, ()))) if times is None else times - 1
            yield msgspec.structs.replace(letter, replays=replays, sent_back=times is not None)

    def is_erased(self, letter: Letter) -> bool:
        """Whether it is of somebody who was erased after the event."""
        return _Place(letter.partition, letter.offset) in self._of_erased

    def origin(self, letter: Letter) -> bytes:
        """What is the same for two letters of one message."""
        return self._identities[_Place(letter.partition, letter.offset)].origin


def survey(
    reader: FrameReader,
    extents: Mapping[Partition, Extent],
    report: Callable[[int], None],
    erased: ErasedLetters | None = None,
) -> Survey:
    """Read the whole dead-letter topic.

    Args:
        reader: Reads it from its beginning.
        report: Called with the number of messages so far.
        erased: Tells the letters of people who were erased.

    Raises:
        LogGap, LogUnavailable: As `read_to_end` says.
    """
    found = Survey() if erased is None else Survey(erased)
    for count, message in enumerate(read_to_end(reader, extents), 1):
        found.add(message)
        report(count)
    return found


def list_letters(topic: str, found: Survey, wanted: Filter, limit: int) -> LetterList:
    """The newest letters that the filter lets through, and how many there are."""
    matching = [letter for letter in found.letters() if wanted.lets_through(letter)]
    reasons = Counter(letter.reason for letter in matching)
    newest = heapq.nlargest(limit, matching, key=lambda one: (one.written_at, one.partition, one.offset))
    return LetterList(topic, len(matching), dict(reasons.most_common()), newest[::-1], found.others)


def show_letter(
    reader: FrameReader,
    extents: Mapping[Partition, Extent],
    partition: int,
    offset: int,
    report: Callable[[int], None],
) -> WholeLetter:
    """Everything of one letter. The whole topic is read, for only a mark says that it was sent back.

    Raises:
        DriftlineError: There is no letter at that place.
        LogGap, LogUnavailable: As `read_to_end` says.
    """
    found = Survey()
    whole: DeadLetter | None = None
    for count, message in enumerate(read_to_end(reader, extents), 1):
        found.add(message)
        report(count)
        if (message.partition, message.offset) == (partition, offset):
            whole = read_letter(message.value, message.key, message.headers)
    if whole is None:
        raise DriftlineError(
            f"no dead letter lies at {partition}:{offset}: it is a partition of the dead-letter topic and an offset in it, "
            "as `driftline deadletters list` shows them"
        )
    (brief,) = (one for one in found.letters() if (one.partition, one.offset) == (partition, offset))
    return WholeLetter(
        brief,
        whole.timestamp_ms,
        _content(whole.key),
        [NamedContent(name, _content(value)) for name, value in whole.headers],
        _content(whole.value),
    )


# Sending back


class LetterSink(Protocol):
    """Where messages go; `streams.log.producer.Producer` is one."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | str | None = None,
        partition: int = -1,
        headers: Headers = (),
        timestamp_ms: int = 0,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Hand over a message. ``on_failure`` is told why it was not accepted, before `flush` returns."""

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises `DeliveryFailed` where nobody was to be told."""


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Which letters are to be sent back.

    Attributes:
        chosen: By their place; how often their event will have been sent back then.
        to_send: How many of them go to each topic.
    """

    matching: int
    chosen: Mapping[tuple[int, int], int]
    to_send: dict[str, int]
    left_out: dict[LeftOut, int]
    not_reached: int


def plan_replay(
    found: Survey,
    wanted: Filter,
    sources: Iterable[str],
    existing: Mapping[str, Topic],
    max_replays: int,
    limit: int | None,
) -> ReplayPlan:
    """Choose what to send back.

    Args:
        sources: The topics that ingest reads.
        existing: Those of them that there are.
        max_replays: An event that was sent back as often, and failed each time, is left out.
        limit: Letters to send at most, the oldest; None: all.
    """
    matching = sorted(
        (letter for letter in found.letters() if wanted.lets_through(letter)),
        key=lambda one: (one.written_at, one.partition, one.offset),
    )
    readable = set(sources)
    left_out: Counter[LeftOut] = Counter()
    good: list[Letter] = []
    origins: set[bytes] = set()
    for letter in matching:
        reason = _refusal(letter, readable, existing, max_replays)
        if reason is None and found.is_erased(letter):
            reason = "erased"
        if reason is None and letter.stage == "encode" and found.erased.pseudonyms:
            reason = "pseudonyms"
        if reason is None and found.origin(letter) in origins:
            reason = "copies"
        if reason is None:
            origins.add(found.origin(letter))
            good.append(letter)
        else:
            left_out[reason] += 1
    chosen = good[:limit]
    return ReplayPlan(
        len(matching),
        {(letter.partition, letter.offset): letter.replays + 1 for letter in chosen},
        dict(Counter(letter.source.topic for letter in chosen)),
        dict(left_out),
        len(good) - len(chosen),
    )


def send_back(
    plan: ReplayPlan,
    reader: FrameReader,
    extents: Mapping[Partition, Extent],
    sink: LetterSink,
    sources: Mapping[str, Topic],
    report: Callable[[int], None],
) -> SentBack:
    """Send what was chosen back to its source topics, and mark it.

    A message keeps its key, its headers, its timestamp, and its partition where the topic still has that. One that Kafka
    refuses, such as one that the header more makes too large, is left without a mark, and the others go on.

    Args:
        reader: Reads the dead-letter topic from its beginning.
        report: Called with the number of letters that are sent back and marked.

    Raises:
        DeliveryFailed: Kafka took none of a batch, or not its marks; what ``report`` was told last is marked.
        LogGap, LogUnavailable: As `read_to_end` says.
    """
    sent = 0
    refused: dict[str, str] = {}
    for batch in _batches(message for message in read_to_end(reader, extents) if _place(message) in plan.chosen):
        failed: dict[tuple[int, int], str] = {}
        marks = [_send_one(message, plan.chosen[_place(message)], sink, sources, failed) for message in batch]
        sink.flush()
        if len(failed) == len(batch) > 1:
            raise DeliveryFailed(f"Kafka accepted none of {len(batch):,} letters: {failed[_place(batch[0])]}")
        for mark in marks:
            if (mark.partition, mark.offset) not in failed:
                sink.send(mark.topic, None, partition=mark.partition, headers=mark_headers(mark))
        sink.flush()
        refused |= {f"{partition}:{offset}": why for (partition, offset), why in failed.items()}
        sent += len(batch) - len(failed)
        report(sent)
        if sent + len(refused) == len(plan.chosen):
            break
    return SentBack(sent, refused)


def _send_one(
    message: Message,
    times: int,
    sink: LetterSink,
    sources: Mapping[str, Topic],
    failed: dict[tuple[int, int], str],
) -> Replay:
    letter = read_letter(message.value, message.key, message.headers)
    if letter is None or letter.topic not in sources:  # it was another when the plan was made
        raise DataError(
            f"{message.topic} partition {message.partition} has another message at offset {message.offset} than a moment ago: "
            "the topic was made anew. Run it again"
        )
    replay = Replay(times, message.topic, message.partition, message.offset)
    partition = letter.partition if letter.partition < sources[letter.topic].partitions else -1
    # An event without a time of its own is dated by this. Older letters do not say it; they were written soon after.
    timestamp_ms = letter.timestamp_ms or max(message.timestamp_ms, 0)
    headers = replay_headers(letter, replay)

    def on_failure(why: str) -> None:
        failed[_place(message)] = why

    try:
        sink.send(letter.topic, letter.value, letter.key, partition, headers, timestamp_ms, on_failure)
    except DeliveryFailed as error:
        on_failure(str(error))
    return replay


def _batches(messages: Iterable[Message]) -> Iterator[Sequence[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        batch.append(message)
        size += len(message.value or b"")
        if len(batch) >= _BATCH_LETTERS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _place(message: Message) -> tuple[int, int]:
    return message.partition, message.offset


def _refusal(letter: Letter, sources: set[str], existing: Mapping[str, Topic], max_replays: int) -> LeftOut | None:
    if letter.sent_back:
        return "sent_back_before"
    if letter.stage == "frame":
        return "frames"
    if letter.source.topic not in sources:
        return "not_a_source"
    if letter.source.topic not in existing:
        return "no_such_topic"
    return "too_often" if letter.replays >= max_replays else None


def _brief(message: Message, letter: DeadLetter, replays: int) -> Letter:
    return Letter(
        message.partition,
        message.offset,
        message.timestamp_ms,
        letter.reason,
        Origin(letter.topic, letter.partition, letter.offset),
        letter.stage,
        letter.message,
        replays,
        sent_back=False,
    )


def _identity(letter: DeadLetter) -> _Identity:
    place = f"{letter.topic}\0{letter.partition}\0{letter.offset}\0{letter.stage}\0{letter.timestamp_ms}\0"
    # The time too: a topic that was made anew has other messages at the same offsets.
    origin = _digest(place.encode() + (letter.value or b""))
    event = _digest(letter.topic.encode() + b"\0" + (letter.value or b"")) if letter.stage == "encode" else b""
    return _Identity(origin, event)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _content(raw: bytes | None) -> Content:
    if raw is None:
        return Content(None, None)
    try:
        return Content(raw.decode(), None)
    except UnicodeDecodeError:
        return Content(None, raw.hex())
