import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from streams.contracts.event import InvalidEvent, decode_event
from streams.contracts.recommendation import (
    ModelName,
    Recommendation,
    RecommendedItem,
    Trigger,
    VectorSummary,
    decode_recommendation,
    encode_recommendation,
)
from streams.contracts.schemas import CONTRACTS, DIRECTORY, schema_text


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_checked_in_schema_is_what_the_structs_give(name: str) -> None:
    checked_in = (DIRECTORY / f"{name}.schema.json").read_text(encoding="utf-8")
    assert checked_in == schema_text(name), "run `python -m streams.contracts.schemas`"


def test_every_checked_in_schema_is_of_a_contract() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == {f"{name}.schema.json" for name in CONTRACTS}


def checked_in_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((DIRECTORY / f"{name}.schema.json").read_bytes())
    return schema


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_schema_is_valid_draft_2020_12(name: str) -> None:
    schema = checked_in_schema(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


IDS = {"user_id": "u1", "item_id": "i1"}


@pytest.mark.parametrize(
    "event",
    [
        IDS,
        {**IDS, "unknown": {"a": [1]}},
        {**IDS, "type": None, "event_time": None, "value": None, "context": None},
        {**IDS, "event_time": 1_767_225_600_000},
        {**IDS, "event_time": "2026-01-01T00:00:00+01:00"},
        {**IDS, "value": 4, "position": 0, "context": {"page": "home"}, "session_id": "s", "recommendation_id": "r"},
        {**IDS, "anonymous_id": 17},
        {"user_id": "u1", "type": "$erase"},
        {"user_id": "u1", "type": "$identify", "anonymous_id": "a" * 128, "event_id": "e1"},
        {"user_id": "ü" * 128, "item_id": "i" * 128, "event_id": "e" * 128, "type": "t" * 64},
    ],
)
def test_schema_and_decoder_accept_the_same_events(event: dict[str, object]) -> None:
    Draft202012Validator(checked_in_schema("event.v1")).validate(event)
    assert decode_event(json.dumps(event).encode(), 65_536).user_id == event["user_id"]


@pytest.mark.parametrize(
    "event",
    [
        [],
        "u1",
        None,
        {},
        {"user_id": "u1"},
        {"user_id": 5, "item_id": "i1"},
        {"user_id": "", "item_id": "i1"},
        {"user_id": "u" * 129, "item_id": "i1"},
        {**IDS, "item_id": None},
        {**IDS, "type": "t" * 65},
        {**IDS, "event_time": 1.5},
        {**IDS, "event_time": [2026]},
        {**IDS, "value": "4"},
        {**IDS, "value": True},
        {**IDS, "position": -1},
        {**IDS, "position": 1_000_001},
        {**IDS, "position": 1.5},
        {**IDS, "context": [1]},
        {**IDS, "context": "{}"},
        {"user_id": "u1", "type": "click"},
        {**IDS, "type": "$purchase"},
        {**IDS, "type": "$erase"},
        {"type": "$erase"},
        {**IDS, "type": "$identify", "anonymous_id": "a1"},
        {"user_id": "u1", "type": "$identify"},
        {"user_id": "u1", "type": "$identify", "anonymous_id": None},
        {"user_id": "u1", "type": "$identify", "anonymous_id": ""},
        {"user_id": "u1", "type": "$identify", "anonymous_id": "a" * 129},
    ],
)
def test_schema_and_decoder_refuse_the_same_events(event: object) -> None:
    assert not Draft202012Validator(checked_in_schema("event.v1")).is_valid(event)
    with pytest.raises(InvalidEvent):
        decode_event(json.dumps(event).encode(), 65_536)


RECOMMENDATION = Recommendation(
    "0123456789abcdef0123456789abcdef",
    "u1",
    1_767_225_600_000,
    "live",
    "personal",
    Trigger("e1", "click", "i1", 1_767_225_599_000, "clicks", 2, 17, "id-1"),
    ModelName("sasrec", "0123456789ab"),
    VectorSummary(32, None),
    [RecommendedItem("i2", 1, 0.5, ["i1"]), RecommendedItem("i3", 2, None, [])],
)


def test_a_recommendation_reads_as_its_schema_says() -> None:
    raw = encode_recommendation(RECOMMENDATION)
    found = json.loads(raw)
    Draft202012Validator(checked_in_schema("recommendation.v1")).validate(found)
    assert found == {
        "recommendation_id": "0123456789abcdef0123456789abcdef",
        "user_id": "u1",
        "generated_at": 1_767_225_600_000,
        "mode": "live",
        "strategy": "personal",
        "trigger": {
            "event_id": "e1",
            "type": "click",
            "item_id": "i1",
            "event_time": 1_767_225_599_000,
            "topic": "clicks",
            "partition": 2,
            "offset": 17,
            "topic_id": "id-1",
        },
        "model": {"name": "sasrec", "version": "0123456789ab"},
        "vector": {"dim": 32, "drift": None},
        "items": [
            {"item_id": "i2", "rank": 1, "score": 0.5, "because": ["i1"]},
            {"item_id": "i3", "rank": 2, "score": None, "because": []},
        ],
    }
    assert decode_recommendation(raw) == RECOMMENDATION


@pytest.mark.parametrize(
    "change",
    [{"mode": "demo"}, {"strategy": None}, {"items": [{"item_id": "i2", "rank": 0, "score": 1.0, "because": []}]}],
)
def test_schema_and_decoder_refuse_the_same_recommendations(change: dict[str, object]) -> None:
    wrong = {**json.loads(encode_recommendation(RECOMMENDATION)), **change}
    assert not Draft202012Validator(checked_in_schema("recommendation.v1")).is_valid(wrong)
    with pytest.raises(msgspec.ValidationError):
        decode_recommendation(json.dumps(wrong).encode())


def test_a_recommendation_of_before_triggers_named_the_topics_id_is_still_read() -> None:
    older = json.loads(encode_recommendation(RECOMMENDATION))
    del older["trigger"]["topic_id"]
    Draft202012Validator(checked_in_schema("recommendation.v1")).validate(older)
    assert decode_recommendation(json.dumps(older).encode()).trigger.topic_id == ""
