"""Hypothesis strategies for bytes that were once valid."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["\ud800", "\0", "1e999", "2026-01-01T00:00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 6)), min_size=1, max_size=4)


def damaged(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the valid messages, a few bytes of it replaced, inserted or cut out."""
    return st.builds(_damage, st.sampled_from(valid), _CHANGES)


def changed_json(valid: bytes) -> st.SearchStrategy[bytes]:
    """Valid JSON with another value, or none, in one place."""
    document = json.loads(valid)
    return st.builds(
        _with_value, st.just(document), st.sampled_from(list(_paths(document))), JSON_VALUES | st.just(...)
    )


def _damage(raw: bytes, changes: Sequence[tuple[int, bytes, int]]) -> bytes:
    for place, inserted, removed in changes:
        at = place % (len(raw) + 1)
        raw = raw[:at] + inserted + raw[at + removed :]
    return raw


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Sequence[tuple[str | int, ...]]:
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, held in inside for found in _paths(held, (*path, key)))]


def _with_value(document: Any, path: tuple[str | int, ...], value: Any) -> bytes:
    """The document with a value at a path; `...` takes out what is there."""
    if not path:
        return b"" if value is ... else json.dumps(value).encode()
    copy: Any = json.loads(json.dumps(document))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return json.dumps(copy).encode()
