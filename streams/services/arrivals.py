"""From a frame to the new events of each user: the same for live workers and for replays."""

from dataclasses import dataclass, field

from streams.contracts.erasure import Erasure, Erasures
from streams.contracts.event import ERASE, IDENTIFY
from streams.contracts.frame import Frame, Source, event_ids
from streams.interest.window import Arrival


@dataclass(frozen=True, slots=True)
class Identified:
    """A `$identify` in the log: an anonymous user is a user.

    Attributes:
        appended_ms: Kafka's timestamp of it, milliseconds since 1970.
        frame_offset: Of its frame in `interactions`.
        before: Events of these frames that belong to the window that is handed over.
        is_whole: They are all of it: an older window ended in these frames.
    """

    anonymous_id: str
    user_id: str
    appended_ms: int
    frame_offset: int
    before: list[Arrival]
    is_whole: bool


@dataclass(slots=True)
class Intake:
    """What frames hold that is new.

    Attributes:
        arrivals: Events by user, in the order of the log; of a user whose window ended, those after its end.
        ended: Users whose window ended, each with the offset of the frame in which it did so last. They are in
            ``arrivals`` too, though perhaps without any.
        erasures: The `$erase` events.
        erased_ms: The latest time of those of each user.
        identified: The `$identify` events, in the order of the log.
        resent: Events left out because ingest had sent them before.
        erased: Events left out because their user was erased after them.
        controls: Events that ask for something.
    """

    arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    erasures: list[Erasure] = field(default_factory=list)
    erased_ms: dict[str, int] = field(default_factory=dict)
    identified: list[Identified] = field(default_factory=list)
    resent: int = 0
    erased: int = 0
    controls: int = 0

    def end(self, user: str, frame_offset: int) -> list[Arrival]:
        """End a user's window; returns the events of these frames that were in it."""
        before = self.arrivals.get(user, [])
        self.arrivals[user] = []
        self.ended[user] = frame_offset
        return before


def add_arrivals(frame: Frame, frame_offset: int, marks: dict[Source, int], erasures: Erasures, intake: Intake) -> None:
    """Add a frame's new events to those of each user, in the order of the log.

    An event that came into Kafka before its user was erased is left out wherever in the log it lies: ingest may have
    read it late, or somebody sent it again. Only the `$erase` itself always counts.

    Args:
        frame_offset: Of the frame in `interactions`.
        marks: For each raw partition the highest raw offset seen; moved on. An event at or below it was sent again.
        erasures: What was recorded before.
        intake: Added to.
    """
    sources, ids, arrivals = frame.sources, event_ids(frame), intake.arrivals
    erases, identifies = ERASE in frame.type, IDENTIFY in frame.type
    erased_ms = intake.erased_ms
    # Looked up once a frame: a hash of a source costs as much as an arrival.
    marked = [marks.get(source, -1) for source in sources]
    columns = zip(
        frame.source, frame.offset, frame.user, frame.time_ms, ids, frame.item, frame.type, frame.event_id,
        frame.appended_ms, strict=True,
    )  # fmt: skip
    for index, (source_index, offset, user, time_ms, event_id, item, kind, given, appended_ms) in enumerate(columns):
        if offset <= marked[source_index]:
            intake.resent += 1
            continue
        marked[source_index] = offset
        if erases and kind == ERASE:
            intake.controls += 1
            intake.erased += len(intake.end(user, frame_offset))
            intake.erasures.append(Erasure(user, appended_ms, frame_offset))
            erased_ms[user] = max(appended_ms, erased_ms.get(user, appended_ms))
            continue
        if (erased_ms and appended_ms <= erased_ms.get(user, -1)) or (erasures and erasures.covers(user, appended_ms)):
            intake.erased += 1
            continue
        if identifies and kind == IDENTIFY:
            intake.controls += 1
            if item != user:
                is_whole = user in intake.ended
                before = intake.end(user, frame_offset)
                intake.identified.append(Identified(user, item, appended_ms, frame_offset, before, is_whole))
            continue
        source = sources[source_index]
        arrival = Arrival(time_ms, event_id, item, kind, given is not None, source, offset, appended_ms, frame, index)
        of_user = arrivals.get(user)
        if of_user is None:
            arrivals[user] = [arrival]
        else:
            of_user.append(arrival)
    marks.update(zip(sources, marked, strict=True))
