"""Writes the JSON Schemas of what apps send and read: ``python -m streams.contracts.schemas``."""

import json
from pathlib import Path
from typing import Final

import msgspec

from streams.contracts.event import Event
from streams.contracts.recommendation import Recommendation

DIRECTORY: Final = Path(__file__).parent / "json_schema"
CONTRACTS: Final[dict[str, type[msgspec.Struct]]] = {"event.v1": Event, "recommendation.v1": Recommendation}


def schema_text(name: str) -> str:
    """The JSON Schema (draft 2020-12) of one contract, as the checked-in file holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    schema |= msgspec.json.schema(CONTRACTS[name])
    return json.dumps(schema, indent=2) + "\n"


def main() -> None:
    """Write every schema file anew."""
    DIRECTORY.mkdir(exist_ok=True)
    for name in CONTRACTS:
        (DIRECTORY / f"{name}.schema.json").write_text(schema_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
