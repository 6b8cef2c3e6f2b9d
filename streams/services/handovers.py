"""Handing over a window: from an anonymous user's partition to that of the user who it was.

No store changes two partitions at once, so the window goes through the log. The worker that comes to a `$identify` sends
the window to the user's partition of `interactions`, as a frame of ordinary events, waits until Kafka has it, and removes
the row in its swap. Whoever applies that frame puts the events into the user's window as it does any others: in time
order, late ones and repeats left out. A replay of `interactions` finds the frame in the log and sends nothing.

Once, whatever dies: the events of a handover have a source of their own, the partition of `interactions` that they come
from, and offsets that rise along it (the frame of the `$identify`, and the number of the event). So the marks of the
user's partition tell a handover that was sent again, if none can come before one that it should follow. It cannot: all of
one partition's are sent in the order of its log, to each partition one at a time, each acknowledged before the next, and
before the swap that takes its `$identify` below the watermark. Whoever sends one, also a stale worker or one that applies
an older generation, or has sent those before it, or knows a watermark above them. And it is the same window each time, for
the window at a place of the log follows from the log.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from streams.contracts.erasure import Erasures
from streams.contracts.event import Event
from streams.contracts.frame import Frame, FrameBuilder, Source, partition_of
from streams.interest.window import Arrival, UserState
from streams.services.arrivals import Identified, Intake, add_arrivals

# A frame has 256 users at most, each with one window of before it: room for windows of 16,000 events.
_EVENTS_A_FRAME: Final = 2**22


@dataclass(frozen=True, slots=True)
class Handover:
    """A `$identify`, and the anonymous user's window as it was there."""

    identified: Identified
    state: UserState


def handover_frames(
    handovers: Sequence[Handover], source: Source, partitions: int, max_events: int, max_bytes: int
) -> dict[int, list[Frame]]:
    """The frames that hand over windows, by the partition of `interactions` that they go to, in order.

    Args:
        handovers: Of one partition of `interactions`, of whole frames, in the order of its log.
        source: That partition.
        partitions: That users are spread over.
        max_events, max_bytes: Of a frame, as for those of ingest.
    """
    builders: dict[int, FrameBuilder] = {}
    counts: Counter[int] = Counter()
    for handover in handovers:
        one, state = handover.identified, handover.state
        builder = builders.setdefault(partition_of(one.user_id, partitions), FrameBuilder(max_events, max_bytes))
        for item, kind, time_ms, event_id in zip(state.items, state.types, state.times, state.ids, strict=True):
            offset = one.frame_offset * _EVENTS_A_FRAME + counts[one.frame_offset]
            counts[one.frame_offset] += 1
            # A derived id names a place in the raw log: here it must be given, or it would name this one.
            event = Event(one.user_id, item, kind, event_id)
            size = sum(len(text.encode()) for text in (one.user_id, item, event_id))
            builder.add(event, source, offset, one.appended_ms, kind, time_ms, size)
    return {partition: builder.take() for partition, builder in builders.items()}


def handed_over(handover: Handover, source: Source) -> list[Arrival]:
    """The events of a window as they arrive at the user's, for a replay of a log that holds no handovers."""
    (frames,) = handover_frames([handover], source, 1, max_events=10**9, max_bytes=10**12).values()
    intake = Intake()
    for frame in frames:
        add_arrivals(frame, handover.identified.frame_offset, {}, Erasures(), intake)
    return intake.arrivals.get(handover.identified.user_id, [])
