import io

from rich.console import Console

from streams.cli.users import _explanation
from streams.services.users import ExplainedEvent, ExplainedItem, ExplainedUser


def rendered(found: ExplainedUser, top: int = 3) -> list[list[str]]:
    """The lines, each cut into its cells."""
    out = io.StringIO()
    console = Console(file=out, width=200, markup=False)
    for part in _explanation(found, top):
        console.print(part)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.getvalue().splitlines()]


def event(item: str, age_s: float | None, kind: str = "click") -> ExplainedEvent:
    return ExplainedEvent(item, kind, 0, f"id-of-{item}", f"The {item}", age_s)


def user(window: list[ExplainedEvent], *items: ExplainedItem, strategy: str = "personal") -> ExplainedUser:
    return ExplainedUser("ana", "0123456789ab", "0" * 32, strategy, window, list(items))


def test_what_raised_an_item_most_comes_first_and_what_lowered_it_most_comes_last() -> None:
    window = [event("a", 7_500.0), event("b", 60.0, "view"), event("c", 2.5), event("d", 1.0), event("e", 0.0)]
    lines = rendered(user(window, ExplainedItem(1, "x", "The x", 1.25, [0.5, -0.25, 0.0, 0.75, -1.0])))
    assert lines == [
        ["What moved each score: user ana, model 0123456789ab"],
        ["rank", "item", "title", "score", "by", "event", "of", "type", "before the newest"],
        ["1", "x", "The x", "1.2500", "+0.7500", "d", "The d", "click", "1 s"],
        ["+0.5000", "a", "The a", "click", "2 h 5 min"],
        ["-0.2500", "b", "The b", "view", "1 min"],
        ["-1.0000", "e", "The e", "click", "0 s"],
    ]


def test_only_the_strongest_events_of_each_direction_are_shown() -> None:
    window = [event(item, 0.0) for item in "abcdef"]
    lines = rendered(user(window, ExplainedItem(3, "x", None, 1.0, [1, 2, 3, -1, -2, -3])), top=1)
    assert [line[-4] for line in lines[2:]] == ["c", "f"]


def test_an_item_that_no_event_moved_and_that_is_not_in_the_list_has_one_line() -> None:
    lines = rendered(user([event("a", 0.0)], ExplainedItem(None, "x", "The x", 0.0, [0.0])))
    assert lines[2:] == [["–", "x", "The x", "0.0000", "–", "–", "–", "–", "–"]]


def test_events_that_the_model_did_not_read_are_counted_below() -> None:
    window = [event("a", 0.0), event("new", None)]
    lines = rendered(user(window, ExplainedItem(1, "x", "The x", 1.0, [1.0, 0.0])))
    (note,) = lines[-1]
    assert len(lines) == 4
    assert note.startswith("1 of the 2 events of the window did nothing: the model does not know their items")


def test_of_the_popular_list_it_is_said_that_no_event_is_the_reason() -> None:
    window = [event("new", None), event("newer", None)]
    lines = rendered(user(window, ExplainedItem(1, "x", "The x", None, [0.0, 0.0]), strategy="popular"))
    ((sentence,),) = lines
    assert sentence.startswith("The model 0123456789ab knows none of the 2 items in the window of ana")
    assert sentence.endswith("so the list is the popular items: no event raised or lowered any of them.")
