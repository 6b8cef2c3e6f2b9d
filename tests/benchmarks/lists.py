"""What a list costs: ranking alone, a scorer over candidates, and each way of re-ranking. No Kafka, no Redis."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Final

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits

from export.pooling import write_pooling_bundle
from models.bundle import Bundle, GoldenScores
from models.ranking import rank_candidates, rank_items, unit_vectors
from models.rerank import ItemTopics, rerank_calibrated, rerank_dpp, rerank_mmr
from models.spec import IntArray, Vectors
from streams.interest.encode import Scorer
from tests.benchmarks.report import Figure
from tests.benchmarks.workload import ITEMS, item_ids
from tests.small_models import onnx_file, rewritten

_USERS: Final = 512  # evolve.batch_users
_WINDOW: Final = 50
_DIM: Final = 64
_POOL: Final = 100
_K: Final = 10
_TOPICS: Final = 18  # those of MovieLens
_DIVERSITY: Final = 0.3
_HIDDEN: Final = (64, 32)
_ROUNDS: Final = 3


def measure(directory: Path, *, runs: int, say: Callable[[str], None]) -> list[Figure]:
    """Processor time a list on one thread, in batches of 512 users."""
    rng = np.random.default_rng(4)
    bundle = _scored_bundle(directory / "scored", rng)
    scorer = Scorer(bundle, directory / "scored" / "scorer.onnx", "cpu")
    items = bundle.item_vectors
    users = rng.standard_normal((_USERS, _DIM)).astype(np.float32)
    windows = rng.integers(1, ITEMS + 1, (_USERS, _WINDOW))
    unit, topics = unit_vectors(items), _topics(rng)
    pool = rank_items(users, items, windows, _POOL)
    steps: dict[str, Callable[[], object]] = {
        f"the best {_K}": lambda: rank_items(users, items, windows, _K),
        f"the best {_K} of {_POOL} scored": lambda: rank_candidates(users, items, windows, scorer.score, _POOL, _K),
        f"the best {_POOL}, the pool": lambda: rank_items(users, items, windows, _POOL),
        "mmr, of the pool": lambda: rerank_mmr(pool, unit, _K, _DIVERSITY),
        "dpp, of the pool": lambda: rerank_dpp(pool, unit, _K, _DIVERSITY),
        "calibrated, of the pool": lambda: rerank_calibrated(pool, windows, topics, _K, _DIVERSITY),
    }
    figures = []
    with threadpool_limits(1):
        for name, step in steps.items():
            figure = Figure("Lists", name, f"{_DIM} dimensions", "µs")
            step()
            for _ in range(runs):
                started = process_time()
                for _ in range(_ROUNDS):
                    step()
                figure.runs.append((process_time() - started) / (_ROUNDS * _USERS) * 1e6)
            say(f"lists, {name}: {figure.value:.1f} µs")
            figures.append(figure)
    return figures


def _topics(rng: np.random.Generator) -> ItemTopics:
    rows = np.zeros((ITEMS + 1, 3), np.int64)
    for row in range(1, ITEMS + 1):
        count = int(rng.integers(1, 4))
        rows[row, :count] = rng.choice(np.arange(1, _TOPICS + 1), count, replace=False)
    return ItemTopics(tuple(f"topic {number}" for number in range(_TOPICS)), rows)


def _scored_bundle(path: Path, rng: np.random.Generator) -> Bundle:
    """The pooling bundle with the perceptron of NeuMF (He and others, 2017) as its scorer: 128, 64, 32, 1."""
    plain = write_pooling_bundle(path, item_ids(), dim=_DIM)
    sizes = (2 * _DIM, *_HIDDEN, 1)
    weights = [
        (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32) for rows, columns in pairwise(sizes)
    ]
    candidates = np.tile(np.arange(1, 51), (len(plain.golden.vectors), 1))
    return rewritten(
        plain,
        path,
        config=msgspec.structs.replace(plain.config, candidates=_POOL),
        golden=replace(
            plain.golden,
            scores=GoldenScores(candidates, _perceptron(plain.golden.vectors, plain.item_vectors, candidates, weights)),
        ),
        scorer=_perceptron_graph(plain.item_vectors, weights),
    )


def _perceptron(vectors: Vectors, items: Vectors, candidates: IntArray, weights: list[Vectors]) -> Vectors:
    rows = items[candidates]
    layer: Vectors = np.concatenate([np.broadcast_to(vectors[:, None, :], rows.shape), rows], axis=2)
    for weight in weights[:-1]:
        layer = np.maximum(layer @ weight, 0)
    return (layer @ weights[-1])[:, :, 0]


def _perceptron_graph(items: Vectors, weights: list[Vectors]) -> bytes:
    nodes = [
        helper.make_node("Gather", ["table", "candidates"], ["rows"]),
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("Unsqueeze", ["vector", "middle"], ["user"]),
        helper.make_node("Expand", ["user", "shape"], ["users"]),
        helper.make_node("Concat", ["users", "rows"], ["layer0"], axis=2),
    ]
    for number in range(len(weights) - 1):
        nodes += [
            helper.make_node("MatMul", [f"layer{number}", f"weight{number}"], [f"sum{number}"]),
            helper.make_node("Relu", [f"sum{number}"], [f"layer{number + 1}"]),
        ]
    last = len(weights) - 1
    nodes += [
        helper.make_node("MatMul", [f"layer{last}", f"weight{last}"], ["columns"]),
        helper.make_node("Squeeze", ["columns", "last"], ["scores"]),
    ]
    constants = {"table": items, **{f"weight{number}": weight for number, weight in enumerate(weights)}}
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", items.shape[1]]),
            helper.make_tensor_value_info("candidates", TensorProto.INT64, ["batch", "n"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "n"])],
        initializer=[
            *(numpy_helper.from_array(array, name) for name, array in constants.items()),
            numpy_helper.from_array(np.array([1], np.int64), "middle"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    return onnx_file(graph)
