"""Item ids and their rows in the item table."""

from collections.abc import Sequence

import msgspec

from models.errors import DataError


class Vocabulary:
    """The items that a model knows, each with its row. Row 0 is padding; the i-th item of the list has row i + 1.

    Args:
        item_ids: The items in row order.

    Attributes:
        ids: Row to id; `ids[0]` is "". Length items + 1.
        rows: Id to row. The hot path looks up here directly; never change it.

    Raises:
        DataError: No items, an empty id, or an id given twice.
    """

    __slots__ = ("ids", "rows")

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.ids: list[str] = ["", *item_ids]
        self.rows: dict[str, int] = {item_id: row for row, item_id in enumerate(self.ids) if row}
        if not self.rows:
            raise DataError("a vocabulary needs at least one item")
        if "" in self.rows:
            raise DataError(f"the item id in row {self.rows['']} of the vocabulary is empty; give every item an id")
        if len(self.rows) != len(self.ids) - 1:
            twice = next(item_id for row, item_id in enumerate(self.ids) if row and self.rows[item_id] != row)
            raise DataError(f"item id {twice!r} stands in the vocabulary twice; every item needs its own id")

    def __len__(self) -> int:
        """The number of items, padding not counted."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} items)"

    def to_json(self) -> bytes:
        """The item ids as a JSON list in row order, without padding: the content of vocabulary.json."""
        return msgspec.json.encode(self.ids[1:])

    @classmethod
    def from_json(cls, content: bytes) -> "Vocabulary":
        """Read what `to_json` wrote.

        Raises:
            DataError: Not a JSON list of strings, or a list that makes no vocabulary.
        """
        try:
            return cls(msgspec.json.decode(content, type=list[str]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"a vocabulary is a JSON list of item ids: {error}") from error
