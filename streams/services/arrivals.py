"""From a frame to the new events of each user: the same for live workers and for replays."""

from streams.contracts.frame import Frame, Source, event_ids
from streams.interest.window import Arrival


def add_arrivals(frame: Frame, marks: dict[Source, int], arrivals: dict[str, list[Arrival]]) -> int:
    """Add a frame's new events to those of each user, in the order of the log.

    Args:
        marks: For each raw partition the highest raw offset seen; moved on. An event at or below it was sent again.
        arrivals: New events by user; added to.

    Returns:
        How many events were left out because ingest had sent them before.
    """
    resent = 0
    sources, ids = frame.sources, event_ids(frame)
    # Looked up once a frame: a hash of a source costs as much as an arrival.
    marked = [marks.get(source, -1) for source in sources]
    columns = zip(
        frame.source, frame.offset, frame.user, frame.time_ms, ids, frame.item, frame.type, frame.event_id,
        frame.appended_ms, strict=True,
    )  # fmt: skip
    for index, (source_index, offset, user, time_ms, event_id, item, kind, given, appended_ms) in enumerate(columns):
        if offset <= marked[source_index]:
            resent += 1
            continue
        marked[source_index] = offset
        source = sources[source_index]
        arrival = Arrival(time_ms, event_id, item, kind, given is not None, source, offset, appended_ms, frame, index)
        of_user = arrivals.get(user)
        if of_user is None:
            arrivals[user] = [arrival]
        else:
            of_user.append(arrival)
    marks.update(zip(sources, marked, strict=True))
    return resent
