from pathlib import Path

from models.bundle import read_bundle
from streams.services.bundle import bundle_path


def test_the_bundle_is_the_one_that_was_chosen() -> None:
    assert bundle_path(Path("models/mine")) == Path("models/mine")


def test_without_a_choice_it_is_the_demos_which_is_whole() -> None:
    assert read_bundle(bundle_path(None)).config.name == "sasrec-demo"
