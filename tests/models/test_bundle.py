import dataclasses
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest

from export.pooling import write_pooling_bundle
from models.bundle import HASHED, SCORER, Bundle, Golden, GoldenScores, read_bundle, write_bundle
from models.errors import BundleError
from models.spec import Vectors, WindowRule
from tests.small_models import rewritten, write_scored_bundle, write_variational_bundle

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
    return rewritten(bundle, path, item_vectors=change(bundle.item_vectors.copy()))


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


# The optional parts

DEMO = Path(__file__).parents[2] / "streams" / "demo" / "bundle"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scored_bundle(tmp_path_factory.mktemp("bundles") / "scored", ITEM_IDS, candidates=12).path


@pytest.fixture
def scored_copy(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "scored"))


def test_a_bundle_without_the_optional_parts_has_the_files_that_it_had_before_they_existed() -> None:
    bundle = read_bundle(DEMO)
    assert set(bundle.manifest.files) == set(HASHED)
    assert b"candidates" not in (DEMO / "config.json").read_bytes()
    assert (bundle.config.candidates, bundle.scorer_path) == (None, None)
    assert bundle.golden.deviations is None
    assert bundle.golden.scores is None


def test_a_bundle_without_a_scorer_says_nothing_of_one(whole: Path) -> None:
    assert "candidates" not in json.loads((whole / "config.json").read_bytes())
    assert not (whole / SCORER).exists()


def test_a_scorer_is_read_back_with_its_golden_sample(scored: Path) -> None:
    bundle = read_bundle(scored)
    assert bundle.config.candidates == 12
    assert bundle.scorer_path == scored / SCORER
    assert bundle.scorer_path.is_file()
    assert set(bundle.manifest.files) == {*HASHED, SCORER}
    golden = bundle.golden.scores
    assert golden is not None
    assert golden.candidates.shape == golden.scores.shape == (len(bundle.golden.vectors), 31)


def test_deviations_are_read_back(tmp_path: Path) -> None:
    bundle = write_variational_bundle(tmp_path / "bundle", ITEM_IDS)
    assert bundle.golden.deviations is not None
    assert bundle.golden.deviations.tolist() == np.abs(bundle.golden.vectors).tolist()


def test_two_scorers_make_two_versions_and_so_do_two_numbers_of_candidates(scored: Path, tmp_path: Path) -> None:
    bundle = read_bundle(scored)
    content = (scored / SCORER).read_bytes()
    fewer = msgspec.structs.replace(bundle.config, candidates=11)
    versions = {
        bundle.config.version,
        rewritten(bundle, tmp_path / "other", scorer=content + b"\0").config.version,
        rewritten(bundle, tmp_path / "fewer", scorer=content, config=fewer).config.version,
    }
    assert len(versions) == 3
    assert rewritten(bundle, tmp_path / "same", scorer=content).config.version == bundle.config.version


def test_one_changed_byte_of_the_scorer_is_found(scored_copy: Path) -> None:
    content = bytearray((scored_copy / SCORER).read_bytes())
    content[len(content) // 2] ^= 1
    (scored_copy / SCORER).write_bytes(content)
    with pytest.raises(BundleError, match=r"scorer\.onnx was changed after the export"):
        read_bundle(scored_copy)


def test_a_scorer_of_another_model_is_refused_even_where_the_manifest_agrees(scored_copy: Path) -> None:
    replace(scored_copy, SCORER, (scored_copy / SCORER).read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"config\.json says version .* files of two models"):
        read_bundle(scored_copy)


def test_candidates_without_a_scorer_and_a_scorer_without_candidates_are_refused(scored: Path, tmp_path: Path) -> None:
    bundle = read_bundle(scored)
    with pytest.raises(
        BundleError, match=r"asks for 12 candidates to be scored, but manifest.json lists no scorer\.onnx"
    ):
        rewritten(bundle, tmp_path / "bad")
    unscored = msgspec.structs.replace(bundle.config, candidates=None)
    golden = dataclasses.replace(bundle.golden, scores=None)
    with pytest.raises(BundleError, match=r"scorer\.onnx is there, but config\.json does not say how many candidates"):
        rewritten(bundle, tmp_path / "bad", config=unscored, golden=golden, scorer=b"scorer")
    assert not (tmp_path / "bad").exists()


def test_a_scorer_put_beside_a_bundle_that_does_not_know_of_it_is_refused(copy: Path) -> None:
    (copy / SCORER).write_bytes(b"scorer")
    with pytest.raises(BundleError, match=r"scorer\.onnx is there, but config\.json does not say"):
        read_bundle(copy)


def with_scores(golden: Golden, candidates: object, scores: object) -> Golden:
    return dataclasses.replace(golden, scores=GoldenScores(np.array(candidates), np.array(scores)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda golden: dataclasses.replace(golden, scores=None), "it has neither"),
        (lambda golden: with_scores(golden, np.full((8, 2), 31), np.zeros((8, 2), np.float32)), "outside 0 to 30"),
        (
            lambda golden: with_scores(golden, np.ones((8, 2), np.int64), np.zeros((8, 3), np.float32)),
            r"shape \(8, 3\)",
        ),
        (lambda golden: with_scores(golden, np.ones((8, 2), np.int64), np.zeros((8, 2))), "float64, not float32"),
        (lambda golden: with_scores(golden, np.ones((8, 0), np.int64), np.zeros((8, 0), np.float32)), r"\(batch, n\)"),
        (
            lambda golden: with_scores(golden, np.ones((8, 1), np.int64), np.full((8, 1), np.nan, np.float32)),
            "NaN or infinity",
        ),
        (lambda golden: dataclasses.replace(golden, deviations=-np.ones((8, 8), np.float32)), "deviation is negative"),
        (lambda golden: dataclasses.replace(golden, deviations=np.ones((8, 7), np.float32)), r"deviations has shape"),
    ],
)
def test_a_golden_sample_that_cannot_prove_the_parts_is_refused(
    scored: Path, tmp_path: Path, change: Callable[[Golden], Golden], message: str
) -> None:
    bundle = read_bundle(scored)
    with pytest.raises(BundleError, match=message):
        rewritten(bundle, tmp_path / "bad", golden=change(bundle.golden), scorer=(scored / SCORER).read_bytes())


def test_golden_scores_without_a_scorer_are_refused(whole: Path, tmp_path: Path) -> None:
    bundle = read_bundle(whole)
    golden = with_scores(bundle.golden, np.ones((8, 2), np.int64), np.zeros((8, 2), np.float32))
    with pytest.raises(BundleError, match="needs candidates and scores where there is a scorer"):
        rewritten(bundle, tmp_path / "bad", golden=golden)


def test_a_scorer_of_no_candidates_is_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match="a scorer needs at least 1 candidate, not 0"):
        msgspec.structs.replace(read_bundle(whole).config, candidates=0)


def test_one_array_in_the_place_of_the_golden_archive_is_refused(copy: Path) -> None:
    replace(copy, "golden.npz", (copy / "items.npy").read_bytes())
    with pytest.raises(BundleError, match=r"golden\.npz holds one array, not an archive of several"):
        read_bundle(copy)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "metadata.json"])
@pytest.mark.parametrize("content", [b'["\xff"]', b'{"x":"\xff"}', b"[" * 2000, b'{"format":' * 2000])
def test_bad_utf8_and_deep_nesting_are_a_broken_bundle(copy: Path, name: str, content: bytes) -> None:
    if name == "manifest.json":
        (copy / name).write_bytes(content)
    else:
        replace(copy, name, content)
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        read_bundle(copy)
