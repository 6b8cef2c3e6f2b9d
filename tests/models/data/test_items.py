import gzip
from pathlib import Path

import pytest

from models.data.readers import ItemFormat, read_items
from models.errors import DataError
from models.spec import ItemMetadata

REAL = Path(__file__).parents[4] / "shared" / "data"

TOY_STORY = ItemMetadata("Toy Story (1995)", ("Animation", "Children's", "Comedy"))


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_movies_dat_keeps_the_year_in_the_title_and_is_read_in_the_encoding_that_grouplens_uses(tmp_path: Path) -> None:
    lines = "1::Toy Story (1995)::Animation|Children's|Comedy\n\n73::Misérables, Les (1995)::Drama\n"
    for encoding in ("iso-8859-1", "utf-8"):
        assert read_items(written(tmp_path / "movies.dat", lines.encode(encoding))) == {
            "1": TOY_STORY,
            "73": ItemMetadata("Misérables, Les (1995)", ("Drama",)),
        }


def test_a_map_gives_the_items_the_names_that_the_log_has_for_them(tmp_path: Path) -> None:
    movies = written(
        tmp_path / "m.dat.gz", gzip.compress(b"1::Toy Story (1995)::Animation|Children's|Comedy\n2::B (2000)::X\n")
    )
    item_map = written(tmp_path / "map.txt", "10 2\n\n7 1\n8 99\n")
    assert read_items(movies, item_map=item_map) == {"10": ItemMetadata("B (2000)", ("X",)), "7": TOY_STORY}


def test_movies_csv_takes_quoted_titles_and_knows_who_has_no_genre(tmp_path: Path) -> None:
    path = written(
        tmp_path / "movies.csv",
        'movieId,title,genres\n1,"Usual Suspects, The (1995)",Crime|Mystery\n2,Short (1999),(no genres listed)\n',
    )
    assert read_items(path) == {
        "1": ItemMetadata("Usual Suspects, The (1995)", ("Crime", "Mystery")),
        "2": ItemMetadata("Short (1999)"),
    }


def test_a_recbole_item_gets_its_year_into_its_title(tmp_path: Path) -> None:
    path = written(
        tmp_path / "ml.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n2\tUndated\t\tDrama\n",
    )
    assert read_items(path) == {"1": TOY_STORY, "2": ItemMetadata("Undated", ("Drama",))}


def test_our_own_json_is_read_and_an_unknown_field_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "items.json", '{"a": {"title": "A", "topics": ["x", "y"]}, "b": {"title": "B"}}')
    assert read_items(path) == {"a": ItemMetadata("A", ("x", "y")), "b": ItemMetadata("B")}
    for bad in ('{"a": {"name": "A"}}', '["a"]', "{"):
        with pytest.raises(DataError, match=r"bad\.json: .*Expected .*title"):
            read_items(written(tmp_path / "bad.json", bad))


def test_the_format_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "titles", "1::A::X\n")
    assert read_items(path, ItemFormat.MOVIELENS_DAT) == {"1": ItemMetadata("A", ("X",))}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.dat", "1::A::X\n2::B\n", "line 2: '2::B' is not movie::title::genres"),
        ("m.dat", "1::A::X\n1::B::X\n", "line 2: item '1' stands in the file twice"),
        ("m.dat", "::A::X\n", "line 1: no item id"),
        ("m.dat", "1::::X\n", "line 1: no title"),
        ("m.csv", "id,title\n", "line 1: the header is"),
        ("m.csv", "movieId,title,genres\n1,A\n", "line 2: 2 fields instead of 3"),
        ("m.item", "item_id:token\tyear:token\n", "line 1: .*no column for title"),
        ("m.item", "item_id:token\ttitle:token_seq\n1\tA\tB\n", "line 2: 3 fields instead of 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    with pytest.raises(DataError, match=rf"{name}, {problem}"):
        read_items(written(tmp_path / name, content))


def test_a_bad_map_is_refused(tmp_path: Path) -> None:
    movies = written(tmp_path / "m.dat", "1::A::X\n")
    for content, problem in (
        ("5 1 1\n", r"map\.txt, line 1: 3 fields instead of 2"),
        ("5 1\n5 1\n", r"map\.txt, line 2: item '5' stands in the file twice"),
        ("5 99\n", r"map\.txt names no item of .*m\.dat"),
    ):
        with pytest.raises(DataError, match=problem):
            read_items(movies, item_map=written(tmp_path / "map.txt", content))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the MovieLens files in ../shared/data, which may not be copied")
def test_every_item_of_the_movielens_files_has_a_title() -> None:
    million = read_items(REAL / "ml-1m.movies.dat.gz", item_map=REAL / "ml-1m.sasrec-items.txt.gz")
    assert set(million) == {str(number) for number in range(1, 3_417)}
    assert million["3"] == ItemMetadata("Forrest Gump (1994)", ("Comedy", "Romance", "War"))
    assert read_items(REAL / "ml-100k.item.gz")["1"] == TOY_STORY
