from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.contracts.event import decode_event
from streams.contracts.pseudonym import Pseudonyms

KEY = b"0123456789abcdef"


def decoded(raw: bytes, key: bytes | None = KEY) -> tuple[str, str]:
    event = Pseudonyms(key).in_event(decode_event(raw, 1000))
    return event.window_of, event.subject


def test_a_pseudonym_is_what_any_program_with_blake2b_and_the_key_computes() -> None:
    expected = blake2b(b"ana", key=KEY, digest_size=16).hexdigest()
    assert Pseudonyms(KEY).of("ana") == expected == "bf3bcfaef41655bced98e13e96b8cb11"


@given(st.text(min_size=1, max_size=128))
def test_a_pseudonym_is_an_id_and_follows_from_id_and_key_alone(user_id: str) -> None:
    found = Pseudonyms(KEY).of(user_id)
    assert len(found) == 32
    assert set(found) <= set("0123456789abcdef")
    assert Pseudonyms(KEY).of(user_id) == found != Pseudonyms(KEY[::-1]).of(user_id)


def test_every_user_in_an_event_gets_one() -> None:
    ana, device = Pseudonyms(KEY).of("ana"), Pseudonyms(KEY).of("device-17")
    assert decoded(b'{"user_id":"ana","item_id":"i1","anonymous_id":"device-17"}') == (ana, "i1")
    assert decoded(b'{"user_id":"ana","type":"$erase"}') == (ana, "")
    assert decoded(b'{"user_id":"ana","type":"$identify","anonymous_id":"device-17"}') == (device, ana)


def test_nothing_else_of_an_event_changes_and_no_id_is_left() -> None:
    raw = b'{"user_id":"ana","item_id":"i1","anonymous_id":"device-17","event_id":"e1","value":2.5}'
    event = Pseudonyms(KEY).in_event(decode_event(raw, 1000))
    assert (event.item_id, event.event_id, event.value) == ("i1", "e1", 2.5)
    assert "ana" not in repr(event)
    assert "device-17" not in repr(event)


@pytest.mark.parametrize("raw", [b'{"user_id":"ana","item_id":"i1"}', b'{"user_id":"ana","type":"$erase"}'])
def test_without_a_key_ids_stay_as_they_are(raw: bytes) -> None:
    assert not Pseudonyms(None)
    assert decoded(raw, key=None)[0] == "ana"
    assert Pseudonyms(None).of("ana") == "ana"
