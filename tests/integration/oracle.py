"""What must come out of the pipeline, worked out again from what went in: plain sequential Python.

It shares no code with the engine: bytes from Kafka and Redis are taken apart here by hand, rules are written down a
second time from the design. Every check raises AssertionError with the user or the message that disagrees.

    judge            is this raw message an event, and which one?
    check_log        every valid raw event is in the interactions log once, re-sent ones aside
    replay           what the window rule makes of one user's events in the order of the log
    check_rows       every row in Redis is what the replay says: window, vector, list
    check_dead_letters, check_recommendations
"""

import json
import zlib
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Place = tuple[str, int, int]  # topic, partition, offset; of a topic that was deleted "clicks@…" (see check_log)

_1990_MS = 631_152_000_000
_DAY_MS = 86_400_000
_ROUNDING = 1e-5


class Message(NamedTuple):
    """A message as it lies in a topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]

    @property
    def place(self) -> Place:
        return (self.topic, self.partition, self.offset)


class Event(NamedTuple):
    """A valid event, and the raw message that it came from."""

    user: str
    item: str
    type: str
    time_ms: int
    event_id: str
    named: bool
    place: Place

    @property
    def entry(self) -> tuple[int, str, str, str]:
        """What a window holds of it; sorts as a window does, by time and then by id."""
        return (self.time_ms, self.event_id, self.item, self.type)


@dataclass(frozen=True)
class Rule:
    """A window that would exceed ``longest`` events is cut to its newest ``keep``."""

    longest: int
    keep: int


@dataclass(frozen=True)
class Model:
    """The pooling model: the vector of a window is the mean of its items' vectors."""

    rows: Mapping[str, int]
    vectors: Vectors

    def of(self, version: str) -> "Model":
        """The model of a version: this one, where there is but one."""
        return self

    def vector(self, items: Iterable[str]) -> Vectors:
        known = [self.rows[item] for item in items if item in self.rows]
        if not known:
            return np.zeros(self.vectors.shape[1], np.float32)
        mean: Vectors = self.vectors[known].mean(axis=0)
        return mean

    def check_list(self, items: Sequence[str], listed: Sequence[Mapping[str, Any]], k: int, whose: str) -> None:
        """Check a list against a full sort: ids unseen and distinct, scores right and those of the best ``k``."""
        vector = self.vector(items)
        scores = self.vectors @ vector
        unseen = np.ones(len(scores), bool)
        unseen[0] = False
        unseen[[self.rows[item] for item in items if item in self.rows]] = False
        best = -np.sort(-scores[unseen])[:k]
        ids = [entry["item_id"] for entry in listed]
        assert len(set(ids)) == len(ids), f"{whose}: an item is listed twice: {ids}"
        assert not set(ids) & set(items), f"{whose}: seen items are listed: {set(ids) & set(items)}"
        assert len(ids) == len(best), f"{whose}: {len(ids)} items, expected {len(best)}"
        check_close([entry["score"] for entry in listed], best, f"{whose}: scores listed")
        check_close(scores[[self.rows[item] for item in ids]], best, f"{whose}: scores of the items listed")


class Doubled(Model):
    """Its vectors are twice the mean (`tests.small_models.write_doubled_bundle`)."""

    def vector(self, items: Iterable[str]) -> Vectors:
        doubled: Vectors = 2 * super().vector(items)
        return doubled


@dataclass(frozen=True)
class Versions:
    """Models by their versions, where one takes the place of another: an event may then lead to a list from each."""

    models: Mapping[str, Model]

    def of(self, version: str) -> Model:
        """The model of a version."""
        return self.models[version]


def read_model(bundle: Path) -> Model:
    """The items of a bundle and their vectors."""
    ids = json.loads((bundle / "vocabulary.json").read_text())
    return Model({item: row for row, item in enumerate(ids, start=1)}, np.load(bundle / "items.npy"))


def check_close(found: npt.ArrayLike, expected: Vectors, what: str) -> None:
    """Within 1e-5; numpy's own check takes half a millisecond, and there are a hundred thousand lists."""
    difference = np.abs(np.asarray(found) - expected)
    assert not len(difference) or difference.max() <= _ROUNDING, f"{what}: {found!r}, expected {expected!r}"


def check_same_list(whose: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> None:
    """The same items in the same order, but for items whose scores are equal to within rounding: they may change places.

    The last bits of a vector depend on how long the other windows of its batch are. Measured with the pooling model of the
    faults: of a million lists that were made again in other batches, 8 were in another order.
    """
    ids, others = ([entry["item_id"] for entry in items] for items in (first, second))
    scores, other_scores = ([entry["score"] or 0.0 for entry in items] for items in (first, second))
    both = (
        f"two lists of {whose}: {list(zip(ids, scores, strict=True))}, {list(zip(others, other_scores, strict=True))}"
    )
    assert len(ids) == len(others), both
    check_close(scores, np.array(other_scores), both)
    by_item = dict(zip(ids, scores, strict=True))
    for place, (one, other) in enumerate(zip(ids, others, strict=True)):
        # One that is not in the other list ties with what is last there.
        assert one == other or abs(by_item.get(other, scores[-1]) - scores[place]) <= _ROUNDING, both


# Raw events


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)


def judge(message: Message, types: Mapping[str, str]) -> Event | None:
    """The event in a raw message; None where it must be dead-lettered."""
    try:
        found = _decoder.decode((message.value or b"").decode())
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    for name in ("user_id", "item_id"):
        if not isinstance(found.get(name), str) or not 1 <= len(found[name]) <= 128 or "\0" in found[name]:
            return None
    time_ms = found.get("event_time", message.timestamp_ms)
    if not isinstance(time_ms, int) or not _1990_MS <= time_ms <= message.timestamp_ms + _DAY_MS:
        return None
    named = "event_id" in found
    event_id = found["event_id"] if named else _derived_id(message.place)
    kind = found.get("type", types[_name(message.topic)])
    return Event(found["user_id"], found["item_id"], kind, time_ms, event_id, named, message.place)


def _name(topic: str) -> str:
    """The name of a topic, also of one that was deleted."""
    return topic.partition("@")[0]


def _derived_id(place: Place) -> str:
    """What stands for the id of an event that came without one."""
    topic, partition, offset = place
    return f"{_name(topic)}-{partition}-{offset}"


def partition_of(user: str, partitions: int) -> int:
    """Where a user's events go."""
    return zlib.crc32(user.encode()) % partitions


# The interactions log


def read_frame(message: Message, deleted: Mapping[str, str]) -> Iterator[Event]:
    """The events of a frame: MessagePack arrays, column by column."""
    version, sources, source, offset, _, user, item, kind, time_ms, event_id, _ = msgspec.msgpack.decode(
        message.value or b""
    )
    assert version == 1
    for row in range(len(offset)):
        topic, topic_id, partition = sources[source[row]]
        place = (deleted.get(topic_id, topic), partition, offset[row])
        given = event_id[row]
        shown = _derived_id(place) if given is None else given
        yield Event(user[row], item[row], kind[row], time_ms[row], shown, given is not None, place)


@dataclass
class Log:
    """The interactions log without what ingest sent again: each user's events in its order.

    Attributes:
        bad: Raw messages that are no events, by place.
        resent: Events in the log more than once.
        frames: The offset of the frame that brought an event first, by the event's place.
        deleted: As given to `check_log`.
    """

    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    bad: dict[Place, Message] = field(default_factory=dict)
    raw_count: int = 0
    resent: int = 0
    frames: dict[Place, int] = field(default_factory=dict)
    deleted: Mapping[str, str] = field(default_factory=dict)


def check_log(
    raw: Iterable[Message],
    frames: Iterable[Message],
    partitions: int,
    types: Mapping[str, str],
    deleted: Mapping[str, str] = MappingProxyType({}),
) -> Log:
    """Compare the raw topics with the interactions log, both whole.

    Args:
        frames: Of all partitions, each partition in its order.
        types: The type of an event that names none, by raw topic.
        deleted: Raw topics that were deleted and made anew, by the id that they had: the name of the old one in `raw`,
            such as "clicks@1", for its partitions and offsets are the new one's too.
    """
    log = Log(deleted=deleted)
    missing: dict[Place, Event] = {}
    for message in raw:
        log.raw_count += 1
        event = judge(message, types)
        if event is None:
            log.bad[message.place] = message
        else:
            missing[message.place] = event
    marks: dict[tuple[int, str, int], int] = {}
    for frame in frames:
        for event in read_frame(frame, deleted):
            topic, partition, offset = event.place
            mark = (frame.partition, topic, partition)
            expected = missing.pop(event.place, None)
            if expected is None:
                # Known by its place, and the marks must know it too: or evolve would count it twice.
                assert offset <= marks.get(mark, -1), f"in the log twice, or not a raw event at all: {event}"
                log.resent += 1
                continue
            assert event == expected, f"the log holds {event}, the raw topic {expected}"
            assert frame.partition == partition_of(event.user, partitions), f"in the wrong partition: {event}"
            # Overtaken by a later event of its raw partition, it would look like one sent again, and be dropped.
            assert offset > marks.get(mark, -1), f"{event} comes after offset {marks[mark]}"
            marks[mark] = offset
            log.frames[event.place] = frame.offset
            log.events[event.user].append(event)
    assert not missing, f"{len(missing)} events are not in the log, such as {next(iter(missing.values()))}"
    return log


# The window rule


@dataclass
class Replay:
    """What becomes of one user's events, taken in the order of the log."""

    rule: Rule
    window: list[tuple[int, str, str, str]] = field(default_factory=list)
    last: Event | None = None
    outcomes: Counter[str] = field(default_factory=Counter)
    _ids: set[str] = field(default_factory=set)
    _was_cut: bool = False

    def add(self, event: Event) -> bool:
        """Whether the event enters the window."""
        if event.named and event.event_id in self._ids:
            self.outcomes["repeat"] += 1
            return False
        full = self._was_cut or len(self.window) == self.rule.longest
        if full and event.entry[:2] < self.window[0][:2]:
            self.outcomes["late"] += 1
            return False
        insort(self.window, event.entry)
        if len(self.window) > self.rule.longest:
            self.window = self.window[-self.rule.keep :]
            self._was_cut = True
        self._ids.add(event.event_id)
        self.outcomes["applied"] += 1
        self.last = event
        return True


def replay(events: Iterable[Event], rule: Rule) -> Replay:
    """Take a user's events one after the other."""
    done = Replay(rule)
    for event in events:
        done.add(event)
    return done


# Redis


def check_rows(
    rows: Mapping[str, Mapping[str, bytes]],
    log: Log,
    rule: Rule,
    model: Model | Versions,
    partitions: int,
    key_prefix: str,
    k: int,
    generation: str = "g1",
) -> Counter[str]:
    """Compare every user's row with the replay of the log, and with what is true whatever the order was.

    Args:
        rows: Hashes by key; every row under the prefix.
        k: Items a recommendation.

    Returns:
        How many events were applied, repeats and late: together every valid raw event.
    """
    outcomes: Counter[str] = Counter()
    keys = {f"{key_prefix}:{generation}:{{{partition_of(user, partitions)}}}:user:{user}": user for user in log.events}
    assert set(rows) == set(keys), f"rows of other users, or users without a row: {sorted(set(rows) ^ set(keys))[:10]}"
    for key, user in keys.items():
        expected = replay(log.events[user], rule)
        outcomes += expected.outcomes
        window = window_of(rows[key])
        assert window == expected.window, _difference(user, window, expected.window)
        # From the raw events alone: the newest are there, once each, whatever the order in which they came.
        distinct = sorted({event.entry for event in log.events[user]})
        if len(distinct) <= rule.longest:
            assert window == distinct, _difference(user, window, distinct)
        else:
            assert window[-rule.keep :] == distinct[-rule.keep :], _difference(user, window, distinct)
        items = [item for _, _, item, _ in window]
        vector = np.frombuffer(rows[key]["vector"], "<f4")
        made_by = model.of(rows[key]["model"].decode())
        check_close(vector, made_by.vector(items), f"vector of user {user}")
        recommendation = json.loads(rows[key]["recommendations"])
        assert expected.last is not None
        assert _trigger(recommendation, log) == expected.last.place, f"user {user}: not made by the newest event"
        made_by.check_list(items, recommendation["items"], k, f"row of user {user}")
    return outcomes


def window_of(row: Mapping[str, bytes]) -> list[tuple[int, str, str, str]]:
    """The window in a row, as (time, event id, item, type)."""
    version, items, types, times, ids, _, _ = msgspec.msgpack.decode(row["state"])
    assert version == 1
    return list(zip(times, ids, items, types, strict=True))


def _difference(user: str, found: Sequence[Any], expected: Sequence[Any]) -> str:
    return (
        f"user {user}: {len(found)} events in the window, expected {len(expected)}; only found "
        f"{sorted(set(found) - set(expected))[:5]}, only expected {sorted(set(expected) - set(found))[:5]}"
        + (", in another order or twice" if set(found) == set(expected) else "")
    )


# What goes out


def check_dead_letters(letters: Iterable[Message], log: Log) -> int:
    """Check that the dead letters are the bad messages, untouched; returns how many were written more than once."""
    found: Counter[Place] = Counter()
    for letter in letters:
        headers = dict(letter.headers)
        place = place_of_letter(letter)
        assert place in log.bad, f"dead-lettered, but nothing is wrong with it: {place} {letter.value!r}"
        original = log.bad[place]
        assert (letter.value, letter.key) == (original.value, original.key), f"dead letter of {place} was changed"
        assert headers["__streams.errors.message"], f"dead letter of {place} has no reason"
        found[place] += 1
    missing = [message for place, message in log.bad.items() if place not in found]
    assert not missing, f"{len(missing)} bad messages are not dead-lettered, such as {missing[0]}"
    return found.total() - len(found)


def place_of_letter(letter: Message) -> Place:
    """Where a dead letter's message was."""
    headers = dict(letter.headers)
    topic, partition, offset = (headers[f"__streams.errors.{name}"] or b"" for name in ("topic", "partition", "offset"))
    return (topic.decode(), int(partition), int(offset))


def check_recommendations(
    messages: Iterable[Message],
    rows: Mapping[str, Mapping[str, bytes]],
    log: Log,
    rule: Rule,
    model: Model | Versions,
    k: int,
) -> int:
    """Check every recommendation against the window as it was at its trigger, and that none in Redis was not sent.

    Returns:
        How many were sent more than once, each time with the same id and the same list.
    """
    lists: dict[str, list[Mapping[str, Any]]] = {}
    versions: dict[str, str] = {}
    by_trigger: dict[Place, dict[str, list[Mapping[str, Any]]]] = defaultdict(dict)
    repeats = 0
    for message in messages:
        found = json.loads(message.value or b"")
        assert (message.key or b"").decode() == found["user_id"]
        identity, items = found["recommendation_id"], found["items"]
        if identity in lists:
            repeats += 1
            check_same_list(identity, lists[identity], items)
        lists[identity] = items
        versions[identity] = found["model"]["version"]
        by_trigger[_trigger(found, log)][identity] = items
    for user, events in log.events.items():
        state = Replay(rule)
        for event in events:
            if not state.add(event):
                continue
            sent = by_trigger.pop(event.place, {})
            assert len(sent) <= 1 or isinstance(model, Versions), (
                f"one trigger, several ids: {event.place}, {sorted(sent)}"
            )
            for identity, items in sent.items():
                made_by = model.of(versions[identity])
                made_by.check_list([entry[2] for entry in state.window], items, k, f"{identity} of user {user}")
    assert not by_trigger, f"recommendations whose trigger was not applied: {sorted(by_trigger)[:5]}"
    # What a backfill filled, or a sweep encoded again, was sent to nobody.
    for key, row in ({} if isinstance(model, Versions) else rows).items():
        stored = json.loads(row["recommendations"])
        assert stored["recommendation_id"] in lists, f"{key}: in Redis, but never sent"
        check_same_list(key, lists[stored["recommendation_id"]], stored["items"])
    return repeats


def unsent(messages: Iterable[Message], rows: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """The keys of rows whose recommendation was never sent; there must be none at any moment."""
    sent = {json.loads(message.value or b"")["recommendation_id"] for message in messages}
    return [key for key, row in rows.items() if json.loads(row["recommendations"])["recommendation_id"] not in sent]


def _trigger(recommendation: Mapping[str, Any], log: Log) -> Place:
    trigger = recommendation["trigger"]
    return (log.deleted.get(trigger["topic_id"], trigger["topic"]), trigger["partition"], trigger["offset"])
