"""Writes the JSON Schemas of what apps send and read: ``python -m streams.contracts.schemas``."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from streams.contracts.event import ERASE, IDENTIFY, Event
from streams.contracts.recommendation import Recommendation

DIRECTORY: Final = Path(__file__).parent / "json_schema"
CONTRACTS: Final[dict[str, type[msgspec.Struct]]] = {"event.v1": Event, "recommendation.v1": Recommendation}


def schema_text(name: str) -> str:
    """The JSON Schema (draft 2020-12) of one contract, as the checked-in file holds it."""
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    schema |= msgspec.json.schema(CONTRACTS[name])
    if name == "event.v1":
        _add_control_rules(schema["$defs"]["Event"])
    return json.dumps(schema, indent=2) + "\n"


def _add_control_rules(event: dict[str, Any]) -> None:
    """What depends on the type, which a struct cannot say: who names an item, and who another user."""
    del event["properties"]["item_id"]["default"]
    named = event["properties"]["user_id"]
    identifies = {"anonymous_id": {key: named[key] for key in ("type", "minLength", "maxLength")}}
    event["allOf"] = [
        {
            "if": _type_is({"pattern": r"^\$"}),
            "then": {
                "properties": {"type": {"enum": [ERASE, IDENTIFY]}, "item_id": False},
            },
            "else": {"required": ["item_id"]},
        },
        {"if": _type_is({"const": IDENTIFY}), "then": {"properties": identifies, "required": ["anonymous_id"]}},
    ]


def _type_is(rule: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {"type": {"type": "string", **rule}}, "required": ["type"]}


def main() -> None:
    """Write every schema file anew."""
    DIRECTORY.mkdir(exist_ok=True)
    for name in CONTRACTS:
        (DIRECTORY / f"{name}.schema.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
