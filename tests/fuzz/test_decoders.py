"""Whatever bytes come: a decoder raises the error that it documents, or gives a value that can be written and read again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.pooling import write_pooling_bundle
from models.bundle import CONFIG, HASHED, MANIFEST, Manifest, _content_version, _record, read_bundle
from models.errors import BundleError
from models.spec import ModelConfig
from streams.contracts.dead_letter import DeadLetter, read_letter, read_mark
from streams.contracts.event import Event, InvalidEvent, decode_event, event_time_ms
from streams.contracts.frame import Extra, Frame, InvalidFrame, Source, decode_frame, encode_frame, events_of
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    decode_recommendation,
    encode_recommendation,
)
from streams.interest.window import STATE_VERSION, InvalidState, UserState, decode_state, encode_state
from tests.fuzz.mutations import changed_json, damaged

MAX_BYTES = 65_536
NOW_MS = 1_767_225_600_000
ANY_BYTES = st.binary(max_size=200)
DEEP = [b"[" * 2000, b'{"a":' * 2000, b"\x91" * 2000, b'{"user_id":"u","item_id":"i","x":' + b"[" * 2000]

EVENT = msgspec.json.encode(
    {
        "user_id": "ü",
        "item_id": "i1",
        "type": "click",
        "event_id": "e1",
        "event_time": "2025-12-31T23:59:59.5+01:00",
        "session_id": "s",
        "value": 1.5e3,
        "recommendation_id": "r",
        "position": 3,
        "context": {"a": [1, {"b": None}]},
        "unknown": [True, "\u0000"],
    }
)


CONTROL = [
    b'{"user_id":"u","type":"$erase","event_id":"e1"}',
    b'{"user_id":"u","type":"$identify","anonymous_id":"a"}',
]


def event_survives(raw: bytes) -> None:
    try:
        event = decode_event(raw, MAX_BYTES)
        time_ms = event_time_ms(event, NOW_MS, NOW_MS)
    except InvalidEvent:
        return
    assert isinstance(time_ms, int)
    assert decode_event(msgspec.json.encode(event), 2 * MAX_BYTES) == event


@given(ANY_BYTES | damaged([EVENT, *CONTROL]) | changed_json(EVENT) | changed_json(CONTROL[1]) | st.sampled_from(DEEP))
def test_events(raw: bytes) -> None:
    event_survives(raw)


FRAME = encode_frame(
    Frame(
        1,
        [Source("clicks", "id", 0), Source("views", "", 3)],
        [0, 1, 0],
        [10, 7, 12],
        [NOW_MS] * 3,
        ["u1", "u2", "ü"],
        ["a", "b", "c"],
        ["click", "view", "click"],
        [NOW_MS - 5, NOW_MS - 4, NOW_MS - 3],
        [None, "e7", None],
        {1: Extra("s1", 4.5, "r1", 3, '{"page":1}'), 2: Extra(None, 0.0, None, None, None)},
    )
)


@given(ANY_BYTES | damaged([FRAME]) | st.sampled_from(DEEP))
def test_frames(raw: bytes) -> None:
    try:
        frame = decode_frame(raw)
    except InvalidFrame:
        return
    written = encode_frame(frame)
    assert encode_frame(decode_frame(written)) == written
    assert len(events_of(frame)) == len(frame)


STATE = encode_state(
    UserState(STATE_VERSION, ["a", "ü"], ["click", "view"], [NOW_MS, NOW_MS + 1], ["e1", "e2"], True, b"8 bytes.")
)


@given(ANY_BYTES | damaged([STATE]) | st.sampled_from(DEEP))
def test_states(raw: bytes) -> None:
    try:
        state = decode_state(raw)
    except InvalidState:
        return
    assert decode_state(encode_state(state)) == state


RECOMMENDATION = encode_recommendation(
    Recommendation(
        "0123456789abcdef0123456789abcdef",
        "ü",
        NOW_MS,
        "live",
        "personal",
        Trigger("e1", "click", "i1", NOW_MS, "clicks", 2, 17, "id"),
        ModelName("sasrec", "0123456789ab"),
        VectorSummary(32, 0.25),
        [RecommendedItem("i2", 1, 0.5, ["i1"]), RecommendedItem("i3", 2, None, [])],
    )
)


@given(ANY_BYTES | damaged([RECOMMENDATION]) | changed_json(RECOMMENDATION) | st.sampled_from(DEEP))
def test_recommendations(raw: bytes) -> None:
    try:
        found = decode_recommendation(raw)
    except msgspec.DecodeError:
        return
    assert decode_recommendation(encode_recommendation(found)) == found


HEADERS = st.lists(st.tuples(st.text(max_size=5), st.none() | ANY_BYTES), max_size=3)
LETTER = DeadLetter(b"x", b"k", (("trace", b"\xff"),), "not_json", "ü", "clicks", 3, 17, "decode", NOW_MS).all_headers()
OURS = st.lists(st.integers(0, len(LETTER) - 1), max_size=3).flatmap(
    lambda places: st.tuples(
        *(st.tuples(st.just(n), st.none() | st.binary(max_size=30) if i in places else st.just(v))
          for i, (n, v) in enumerate(LETTER))
    )
)  # fmt: skip


@given(st.none() | ANY_BYTES, HEADERS | OURS, HEADERS)
def test_dead_letters(
    value: bytes | None, before: list[tuple[str, bytes | None]], after: list[tuple[str, bytes | None]]
) -> None:
    headers = [*before, *after]
    letter = read_letter(value, None, headers)
    read_mark(value, headers)
    if letter is None:
        return
    letter.replay()
    again = read_letter(value, None, letter.all_headers())
    # What a header holds that is not UTF-8 is shown with a mark in its place, and from then on stays as it is.
    assert again == letter


# Bundles. Hashes find every change of a file but of the manifest, so the manifest and the version are made to agree.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    return write_pooling_bundle(folder / "bundle", [f"item-{number}" for number in range(5)], dim=4).path


@contextmanager
def with_file(bundle: Path, name: str, content: bytes) -> Iterator[Path]:
    copy = Path(shutil.copytree(bundle, bundle.with_name("changed")))
    try:
        (copy / name).write_bytes(content)
        if name != MANIFEST:
            manifest = msgspec.json.decode((copy / MANIFEST).read_bytes(), type=Manifest)
            manifest.files[name] = _record(content)
            if name != CONFIG:
                config = msgspec.json.decode((copy / CONFIG).read_bytes(), type=ModelConfig)
                unversioned = msgspec.structs.replace(config, version="")
                version = _content_version(unversioned, manifest.files)
                agreeing = msgspec.json.encode(msgspec.structs.replace(config, version=version))
                (copy / CONFIG).write_bytes(agreeing)
                manifest.files[CONFIG] = _record(agreeing)
            (copy / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        yield copy
    finally:
        shutil.rmtree(copy)


# A line break in the header of an array makes NumPy take it for one of Python 2's, and say so.
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing:UserWarning")
@given(st.data())
@pytest.mark.parametrize("name", [MANIFEST, *(name for name in HASHED if name != "encoder.onnx")])
def test_bundles(bundle: Path, name: str, data: st.DataObject) -> None:
    whole = (bundle / name).read_bytes()
    contents = ANY_BYTES | damaged([whole])
    if name.endswith(".json"):
        contents |= changed_json(whole) | st.sampled_from(DEEP)
    with with_file(bundle, name, data.draw(contents)) as changed:
        try:
            found = read_bundle(changed)
        except BundleError:
            return
        assert found.config.dim == found.item_vectors.shape[1]
        assert len(found.vocabulary) + 1 == len(found.item_vectors)


def test_the_valid_messages_that_are_damaged_are_valid(bundle: Path) -> None:
    assert isinstance(decode_event(EVENT, MAX_BYTES), Event)
    assert len(decode_frame(FRAME)) == 3
    assert len(decode_state(STATE)) == 2
    assert len(decode_recommendation(RECOMMENDATION).items) == 2
    assert read_letter(b"x", b"k", LETTER) is not None
    assert len(read_bundle(bundle).vocabulary) == 5
