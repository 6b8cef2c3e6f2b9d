from streams.contracts.dead_letter import DeadLetter


def test_our_headers_follow_the_untouched_ones_in_order() -> None:
    headers = [("trace", b"\xff\x00"), ("empty", None), ("trace", b"again")]
    letter = DeadLetter(
        b"\xffnot json", b"\x00key", headers, "not_json", "not valid: ü", "clicks", 3, 1_000_000, "decode"
    )
    assert letter.all_headers() == [
        ("trace", b"\xff\x00"),
        ("empty", None),
        ("trace", b"again"),
        ("__streams.errors.exception", b"not_json"),
        ("__streams.errors.message", b"not valid: \xc3\xbc"),
        ("__streams.errors.topic", b"clicks"),
        ("__streams.errors.partition", b"3"),
        ("__streams.errors.offset", b"1000000"),
        ("__streams.errors.stage", b"decode"),
    ]
    assert (letter.value, letter.key) == (b"\xffnot json", b"\x00key")
    assert headers == [("trace", b"\xff\x00"), ("empty", None), ("trace", b"again")]


def test_a_letter_that_dies_a_second_time_keeps_both_stories_the_newest_last() -> None:
    first = DeadLetter(b"x", None, (), "not_json", "first", "clicks", 0, 1, "decode")
    second = DeadLetter(b"x", None, first.all_headers(), "poison", "second", "events.dlq", 0, 9, "encode")
    messages = [value for name, value in second.all_headers() if name == "__streams.errors.message"]
    assert messages == [b"first", b"second"]
