import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.golden import random_inputs
from export.pooling import write_pooling_bundle
from models.bundle import Bundle, Golden, GoldenScores
from models.spec import IntArray, Vectors, WindowRule
from models.windows import WindowInputs
from streams.errors import EncoderFailed
from streams.interest.encode import (
    CPU_BATCH,
    CUDA_BUCKETS,
    SCORER_BATCH,
    Encoder,
    Scorer,
    open_scorer,
    pad_to_bucket,
    run_bound,
)
from tests.small_models import (
    distance_scores,
    rewritten,
    variational_encoder,
    write_scored_bundle,
    write_variational_bundle,
)

MAX_LENGTH = 7


def has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("encode") / "bundle"
    return write_pooling_bundle(
        path, [f"i{number}" for number in range(40)], dim=5, window=WindowRule(MAX_LENGTH, MAX_LENGTH)
    )


def some_inputs(users: int, seed: int = 0, longest: int = MAX_LENGTH) -> WindowInputs:
    rng = np.random.default_rng(seed)
    return random_inputs(rng.integers(0, longest + 1, users), 40, 2, rng)


def means(bundle: Bundle, inputs: WindowInputs) -> list[list[float]]:
    """What pooling is, a loop at a time."""
    return [
        np.mean([bundle.item_vectors[row].astype(np.float64) for row in items[:length]], axis=0).tolist()
        if length
        else [0.0] * 5
        for items, length in zip(inputs.items.tolist(), inputs.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("users", [1, 2, CPU_BATCH, CPU_BATCH + 1, 3 * CPU_BATCH + 17])
def test_a_batch_of_any_size_is_encoded_row_by_row(bundle: Bundle, users: int) -> None:
    inputs = some_inputs(users)
    vectors = Encoder(bundle, "cpu").encode(inputs)
    assert vectors.shape == (users, 5)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, means(bundle, inputs), atol=1e-6)


def test_an_empty_batch_gives_no_vectors(bundle: Bundle) -> None:
    assert Encoder(bundle, "cpu").encode(some_inputs(0)).shape == (0, 5)


def test_cpu_means_cpu(bundle: Bundle) -> None:
    assert Encoder(bundle, "cpu").provider == "CPUExecutionProvider"


@pytest.mark.skipif(has_cuda(), reason="this machine has a CUDA driver")
def test_asking_for_cuda_and_not_getting_it_is_an_error_that_says_what_to_do(bundle: Bundle) -> None:
    with pytest.raises(EncoderFailed) as caught:
        Encoder(bundle, "cuda")
    message = str(caught.value)
    assert "model.provider is cuda, but ONNX Runtime gave CPUExecutionProvider" in message
    assert "pip install 'driftline[cuda]'" in message
    assert "set model.provider to auto or cpu" in message


@pytest.mark.skipif(has_cuda(), reason="this machine has a CUDA driver")
def test_auto_falls_back_to_the_cpu_and_says_so(bundle: Bundle) -> None:
    assert Encoder(bundle, "auto").provider == "CPUExecutionProvider"


@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")
def test_cuda_gives_the_vectors_that_the_cpu_gives(bundle: Bundle) -> None:
    encoder = Encoder(bundle, "cuda")
    assert encoder.provider == "CUDAExecutionProvider"
    inputs = some_inputs(CUDA_BUCKETS[-1] + 9)
    np.testing.assert_allclose(encoder.encode(inputs), means(bundle, inputs), atol=1e-5)


def with_golden(bundle: Bundle, difference: float) -> Bundle:
    golden = bundle.golden
    vectors = golden.vectors.copy()
    vectors[3, 2] += difference
    return replace(bundle, golden=Golden(golden.inputs, vectors, golden.top))


@pytest.mark.parametrize("difference", [0.002, -0.5, np.nan])
def test_an_encoder_that_does_not_repeat_its_golden_sample_is_refused(bundle: Bundle, difference: float) -> None:
    with pytest.raises(EncoderFailed) as caught:
        Encoder(with_golden(bundle, difference), "cpu")
    message = str(caught.value)
    assert f"the encoder of {bundle.path} does not repeat its golden sample on CPUExecutionProvider" in message
    assert f"vectors differ by {abs(difference):.2g}, 0.001 is allowed" in message
    assert "export the bundle again" in message


def test_what_another_machines_rounding_changes_is_allowed(bundle: Bundle) -> None:
    Encoder(with_golden(bundle, 0.0005), "cpu").verify()


def test_a_file_that_is_no_model_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a model")
    with pytest.raises(EncoderFailed, match=r"ONNX Runtime cannot load .*encoder\.onnx"):
        Encoder(replace(bundle, path=tmp_path), "cpu")


@pytest.mark.parametrize(("users", "bucket"), [(1, 1), (2, 8), (8, 8), (9, 32), (128, 128), (129, 512), (512, 512)])
def test_a_padded_batch_has_one_of_few_shapes_and_the_same_vectors(bundle: Bundle, users: int, bucket: int) -> None:
    inputs = some_inputs(users, longest=4)
    padded = pad_to_bucket(inputs, MAX_LENGTH)
    assert padded.items.shape == padded.types.shape == padded.ages.shape == (bucket, MAX_LENGTH)
    assert padded.lengths.shape == (bucket,)
    assert [array.dtype.name for array in padded.as_feed().values()] == ["int64", "int64", "float32", "int64"]
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    (vectors,) = run_bound(session, padded.as_feed(), ["vector"], "cpu")
    assert vectors.shape == (bucket, 5)
    np.testing.assert_allclose(vectors[:users], means(bundle, inputs), atol=1e-6)
    assert np.isfinite(vectors).all()


def test_inputs_that_are_views_can_be_bound(bundle: Bundle) -> None:
    # Slices of a batch are not contiguous, and a binding reads memory as it lies.
    inputs = some_inputs(6)
    part = WindowInputs(
        inputs.items[::2, :3], inputs.types[::2, :3], inputs.ages[::2, :3], inputs.lengths[::2].clip(0, 3)
    )
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    (vectors,) = run_bound(session, part.as_feed(), ["vector"], "cpu")
    np.testing.assert_allclose(vectors, means(bundle, part), atol=1e-6)


# Variational models

ITEM_IDS = [f"i{number}" for number in range(40)]


@pytest.fixture(scope="module")
def variational(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_variational_bundle(tmp_path_factory.mktemp("encode") / "variational", ITEM_IDS, dim=5)


@pytest.mark.parametrize("users", [0, 1, CPU_BATCH + 17])
def test_a_variational_model_gives_vectors_and_deviations(variational: Bundle, users: int) -> None:
    inputs = some_inputs(users, longest=6)
    encoder = Encoder(variational, "cpu")
    vectors, deviations = encoder.encode_posterior(inputs)
    assert vectors.shape == deviations.shape == (users, 5)
    expected = np.reshape(means(variational, inputs), (users, 5))
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(deviations, np.abs(expected), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(inputs), vectors)


def test_a_model_that_does_not_repeat_its_golden_deviations_is_refused(variational: Bundle) -> None:
    golden = variational.golden
    assert golden.deviations is not None
    other = replace(variational, golden=replace(golden, deviations=golden.deviations + np.float32(0.01)))
    with pytest.raises(EncoderFailed, match=r"does not repeat its golden sample .*: deviations differ by 0\.01"):
        Encoder(other, "cpu")


def test_deviations_that_the_golden_sample_does_not_cover_are_refused_and_the_reverse(
    bundle: Bundle, variational: Bundle, tmp_path: Path
) -> None:
    uncovered = rewritten(bundle, tmp_path / "uncovered", encoder=variational_encoder(bundle.item_vectors))
    with pytest.raises(EncoderFailed, match="outputs deviation, vector, and its golden sample no deviations"):
        Encoder(uncovered, "cpu")
    golden = replace(bundle.golden, deviations=np.abs(bundle.golden.vectors))
    with pytest.raises(EncoderFailed, match="outputs vector, and its golden sample also deviations"):
        Encoder(replace(bundle, golden=golden), "cpu")


# Scorers


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scored_bundle(tmp_path_factory.mktemp("encode") / "scored", ITEM_IDS, candidates=9, dim=5)


def some_candidates(users: int) -> tuple[Vectors, IntArray]:
    rng = np.random.default_rng(users)
    return rng.standard_normal((users, 5)).astype(np.float32), rng.integers(0, 41, (users, 9))


@pytest.mark.parametrize("users", [0, 1, SCORER_BATCH, 2 * SCORER_BATCH + 3])
def test_candidates_of_any_number_of_users_are_scored_row_by_row(scored: Bundle, users: int) -> None:
    scorer = open_scorer(scored, "cpu")
    assert scorer is not None
    vectors, candidates = some_candidates(users)
    scores = scorer.score(vectors, candidates)
    assert (scores.shape, scores.dtype.name) == ((users, 9), "float32")
    np.testing.assert_allclose(scores, distance_scores(vectors, scored.item_vectors, candidates), rtol=1e-5)


@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")
def test_cuda_gives_the_scores_that_the_cpu_gives(scored: Bundle) -> None:
    scorer = open_scorer(scored, "cuda")
    assert scorer is not None
    vectors, candidates = some_candidates(SCORER_BATCH + 9)
    expected = distance_scores(vectors, scored.item_vectors, candidates)
    np.testing.assert_allclose(scorer.score(vectors, candidates), expected, rtol=1e-4)


def test_a_bundle_without_a_scorer_opens_none(bundle: Bundle) -> None:
    assert open_scorer(bundle, "cpu") is None


def with_golden_scores(bundle: Bundle, difference: float) -> Bundle:
    golden = bundle.golden.scores
    assert golden is not None
    scores = golden.scores.copy()
    scores[2, 7] += difference
    return replace(bundle, golden=replace(bundle.golden, scores=GoldenScores(golden.candidates, scores)))


@pytest.mark.parametrize("difference", [1.0, float("nan")])
def test_a_scorer_that_does_not_repeat_its_golden_sample_is_refused(scored: Bundle, difference: float) -> None:
    with pytest.raises(EncoderFailed, match=r"the scorer of .* does not repeat its golden sample .*: scores differ"):
        open_scorer(with_golden_scores(scored, difference), "cpu")


def test_what_rounding_changes_in_a_score_is_allowed(scored: Bundle) -> None:
    assert open_scorer(with_golden_scores(scored, 0.0005), "cpu") is not None


def test_a_scorer_without_a_golden_sample_is_refused(scored: Bundle) -> None:
    with pytest.raises(EncoderFailed, match=r"the scorer of .* has no golden sample"):
        open_scorer(replace(scored, golden=replace(scored.golden, scores=None)), "cpu")


def test_a_scorer_that_is_no_model_or_another_one_is_refused_by_name(scored: Bundle, tmp_path: Path) -> None:
    (tmp_path / "scorer.onnx").write_bytes(b"not a model")
    with pytest.raises(EncoderFailed, match=r"ONNX Runtime cannot load .*scorer\.onnx"):
        Scorer(scored, tmp_path / "scorer.onnx", "cpu")
    with pytest.raises(EncoderFailed, match=r"the scorer of .* fails on its golden sample"):
        Scorer(scored, scored.encoder_path, "cpu")


@pytest.mark.skipif(has_cuda(), reason="this machine has a CUDA driver")
def test_a_scorer_on_cuda_that_is_not_there_is_an_error_too(scored: Bundle) -> None:
    with pytest.raises(EncoderFailed, match=r"model\.provider is cuda, but ONNX Runtime gave CPUExecutionProvider"):
        open_scorer(scored, "cuda")
