import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.pooling import write_pooling_bundle
from models.bundle import HASHED, Bundle, read_bundle, write_bundle
from models.errors import BundleError
from models.spec import Vectors, WindowRule

ITEM_IDS = [f"item-{number}" for number in range(30)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pooling_bundle(tmp_path_factory.mktemp("bundles") / "whole", ITEM_IDS, dim=8).path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def replace(path: Path, name: str, content: bytes) -> None:
    """Change a file and have the manifest agree, as someone who made a bad bundle rather than damaged a good one."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def rewrite(whole: Path, path: Path, change: Callable[[Vectors], Vectors]) -> Bundle:
    """Write the whole bundle again with other item vectors."""
    bundle = read_bundle(whole)
    return write_bundle(
        path,
        config=bundle.config,
        encoder=bundle.encoder_path.read_bytes(),
        vocabulary=bundle.vocabulary,
        item_vectors=change(bundle.item_vectors.copy()),
        metadata=bundle.metadata,
        golden=bundle.golden,
        provenance=bundle.manifest,
    )


def test_what_is_written_is_read_back(whole: Path) -> None:
    bundle = read_bundle(whole)
    assert bundle.vocabulary.ids == ["", *ITEM_IDS]
    assert bundle.config.window == WindowRule(max=50, keep=25)
    assert bundle.config.popular == tuple(ITEM_IDS)
    assert bundle.item_vectors.shape == (31, 8)
    assert bundle.item_vectors.dtype == np.float32
    assert bundle.item_vectors.flags.c_contiguous
    assert not bundle.item_vectors[0].any()
    assert bundle.metadata["item-3"].title == "item-3"
    assert set(bundle.manifest.files) == set(HASHED)
    assert bundle.encoder_path.is_file()


@pytest.mark.parametrize("name", HASHED)
def test_one_changed_byte_in_any_file_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was changed after the export.*Export the model again"):
        read_bundle(copy)


@pytest.mark.parametrize("name", HASHED)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        read_bundle(copy)


@pytest.mark.parametrize("name", HASHED)
def test_a_cut_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name} has [\d,]+ bytes, and manifest.json says"):
        read_bundle(copy)


@pytest.mark.parametrize("name", HASHED)
def test_a_manifest_that_leaves_a_file_out_is_refused(copy: Path, name: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    del manifest["files"][name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"does not list {name}"):
        read_bundle(copy)


def test_a_manifest_cannot_point_outside_the_bundle(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["files"]["../elsewhere"] = {"sha256": "0" * 64, "bytes": 0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a plain file name"):
        read_bundle(copy)


def test_a_place_without_a_bundle_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no model bundle at .*nowhere.*driftline export"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        read_bundle(tmp_path)


def test_a_manifest_of_another_format_is_refused_whatever_else_it_holds(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": 99, "new": true}')
    with pytest.raises(BundleError, match="has format 99, and this version of Driftline reads format 1"):
        read_bundle(copy)


def test_a_manifest_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        read_bundle(copy)


def test_files_of_two_models_in_one_bundle_are_refused_even_where_the_manifest_agrees(copy: Path) -> None:
    items = np.load(copy / "items.npy")
    np.save(copy / "items.npy", items * 2)
    replace(copy, "items.npy", (copy / "items.npy").read_bytes())
    with pytest.raises(BundleError, match=r"config\.json says version .* files of two models"):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vectors: vectors[:, :7], r"shape \(31, 7\).*ask for \(31, 8\)"),
        (lambda vectors: vectors[:30], r"shape \(30, 8\).*ask for \(31, 8\)"),
        (lambda vectors: vectors.astype(np.float64), "is float64, not float32"),
        (lambda vectors: vectors + 1, "row 0 is padding and must be all zeros"),
        (lambda vectors: np.where(vectors == vectors[3, 3], np.nan, vectors), "NaN or infinity"),
        (lambda vectors: np.where(vectors == vectors[3, 3], np.inf, vectors), "NaN or infinity"),
    ],
)
def test_bad_item_vectors_are_neither_written_nor_left_behind(
    whole: Path, tmp_path: Path, change: Callable[[Vectors], Vectors], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        rewrite(whole, tmp_path / "bad", change)
    assert list(tmp_path.iterdir()) == []


def test_two_models_never_share_a_version(whole: Path, tmp_path: Path) -> None:
    version = read_bundle(whole).config.version
    assert len(version) == 12
    assert rewrite(whole, tmp_path / "same", lambda vectors: vectors).config.version == version
    assert rewrite(whole, tmp_path / "other", lambda vectors: vectors * 2).config.version != version


def test_a_bundle_is_replaced_only_when_asked_and_nothing_else_ever(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    first = write_pooling_bundle(place, ITEM_IDS)
    with pytest.raises(BundleError, match="already holds a model bundle"):
        write_pooling_bundle(place, ITEM_IDS, seed=1)
    second = write_pooling_bundle(place, ITEM_IDS, seed=1, overwrite=True)
    assert read_bundle(place).config.version == second.config.version != first.config.version
    assert list(tmp_path.iterdir()) == [place]

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(BundleError, match="is no model bundle, so it is not replaced"):
        write_pooling_bundle(tmp_path / "letters", ITEM_IDS, overwrite=True)


def test_a_popular_item_that_the_vocabulary_lacks_is_refused(whole: Path, tmp_path: Path) -> None:
    bundle = read_bundle(whole)
    with pytest.raises(BundleError, match="names the popular item 'ghost'"):
        write_bundle(
            tmp_path / "bad",
            config=msgspec.structs.replace(bundle.config, popular=("ghost",)),
            encoder=b"",
            vocabulary=bundle.vocabulary,
            item_vectors=bundle.item_vectors,
            metadata={},
            golden=bundle.golden,
            provenance=bundle.manifest,
        )


@pytest.mark.parametrize(("most", "keep"), [(50, 0), (50, 51), (0, 0)])
def test_a_window_rule_that_cannot_be_followed_is_refused(most: int, keep: int) -> None:
    with pytest.raises(ValueError, match="1 <= keep <= max"):
        WindowRule(max=most, keep=keep)
