import pytest

from models.errors import DataError
from models.vocabulary import Vocabulary


def test_rows_start_after_padding() -> None:
    vocabulary = Vocabulary(["x", "y"])
    assert vocabulary.ids == ["", "x", "y"]
    assert vocabulary.rows == {"x": 1, "y": 2}
    assert len(vocabulary) == 2


def test_it_survives_json_with_any_text_in_its_ids() -> None:
    vocabulary = Vocabulary(['a"b', "ünï", "日本"])
    assert Vocabulary.from_json(vocabulary.to_json()).ids == vocabulary.ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least one item"),
        (["a", ""], "row 2 of the vocabulary is empty"),
        (["a", "b", "a"], "'a' stands in the vocabulary twice"),
    ],
)
def test_ids_that_make_no_vocabulary_are_refused(ids: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(ids)


@pytest.mark.parametrize("content", [b"{}", b"[1, 2]", b"not json"])
def test_json_that_is_no_list_of_ids_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="a JSON list of item ids"):
        Vocabulary.from_json(content)


@pytest.mark.parametrize("content", [b'["\xff"]', b"[" * 2000, b'["a",', b"{}", b""])
def test_what_is_no_list_of_ids_is_refused_whatever_its_bytes_are(content: bytes) -> None:
    with pytest.raises(DataError, match="a vocabulary is a JSON list of item ids"):
        Vocabulary.from_json(content)
