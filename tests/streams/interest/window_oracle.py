"""The window rule of the design in plain Python: sort, cut, remember. It shares nothing with `advance_window`."""


class WindowOracle:
    """One user's window.

    Attributes:
        window: (time, event id, item, type), oldest first.
        was_cut: Older events have been cut away.
        applied, repeats, late: How many events had which fate.
    """

    def __init__(self, keep: int, most: int, memory: int) -> None:
        self._keep, self._most, self._memory = keep, most, memory
        self._given_ids: list[str] = []
        self.window: list[tuple[int, str, str, str]] = []
        self.was_cut = False
        self.applied = self.repeats = self.late = 0

    def take(self, time_ms: int, event_id: str, item: str, kind: str, *, named: bool) -> None:
        """Take one event in; ``named``: the app gave the id."""
        remembered = self._given_ids[-self._memory :] if self._memory else []
        if named and (event_id in remembered or any(event_id == entry[1] for entry in self.window)):
            self.repeats += 1
            return
        full = self.was_cut or len(self.window) == self._most
        if self.window and full and (time_ms, event_id) < self.window[0][:2]:
            self.late += 1
            return
        self.applied += 1
        if named:
            self._given_ids.append(event_id)
        self.window = sorted([*self.window, (time_ms, event_id, item, kind)], key=lambda entry: entry[:2])
        if len(self.window) > self._most:
            self.window, self.was_cut = self.window[-self._keep :], True
