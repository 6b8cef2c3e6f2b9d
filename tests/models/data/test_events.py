from models.data.events import LoggedEvent, UserSequence, item_counts, user_sequences


def test_a_users_events_are_ordered_by_time_and_then_by_event_id() -> None:
    events = [
        LoggedEvent("v", "z", "click", 5, "1"),
        LoggedEvent("u", "c", "click", 9, "1"),
        LoggedEvent("u", "b", "view", 4, "2"),
        LoggedEvent("u", "a", "click", 4, "1"),
    ]
    assert user_sequences(events) == [
        UserSequence("u", ("a", "b", "c"), ("click", "view", "click"), (4, 4, 9)),
        UserSequence("v", ("z",), ("click",), (5,)),
    ]


def test_an_item_that_a_user_comes_back_to_stands_in_the_sequence_each_time() -> None:
    events = [LoggedEvent("u", item, "click", time, "1") for time, item in enumerate("abaa")]
    assert user_sequences(events)[0].items == ("a", "b", "a", "a")


def test_no_events_make_no_users() -> None:
    assert user_sequences([]) == []


def test_items_are_counted_most_frequent_first_and_equal_counts_by_id() -> None:
    sequences = [
        UserSequence("u", ("c", "b", "a"), ("click",) * 3, (1, 2, 3)),
        UserSequence("v", ("c", "b"), ("click",) * 2, (1, 2)),
    ]
    assert list(item_counts(sequences).items()) == [("b", 2), ("c", 2), ("a", 1)]
