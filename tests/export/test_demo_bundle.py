"""The demo's bundle is as good as its manifest says: measured again from nothing but its files and the log's plan."""

import math
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.bundle import Bundle, read_bundle
from models.data.events import LoggedEvent
from models.spec import WindowRule
from models.synthetic import CATALOGUE, LogPlan, generate_log
from models.windows import window_inputs

DEMO = Path(__file__).parents[2] / "streams" / "demo" / "bundle"


class Events:
    """The events of one user as a window."""

    def __init__(self, events: list[LoggedEvent]) -> None:
        self.items = [event.item_id for event in events]
        self.types = [event.type for event in events]
        self.times = [event.time_ms for event in events]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle(DEMO)


@pytest.fixture(scope="module")
def users(bundle: Bundle) -> list[list[LoggedEvent]]:
    """Each visitor's events, made again by the training command that the manifest records."""
    words = shlex.split(bundle.manifest.command.splitlines()[0])
    assert words[:2] == ["driftline", "train"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options["--data"] == "synthetic"
    plan = LogPlan(
        users=int(options["--users"]),
        events=int(options["--events"]),
        drift=float(options["--drift"]),
        seed=int(options["--seed"]),
    )
    log = list(generate_log(plan))
    return [log[start : start + plan.events] for start in range(0, len(log), plan.events)]


def ndcg_at_10(ranks: list[int]) -> float:
    return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / len(ranks)


def hit_rate_at_10(ranks: list[int]) -> float:
    return sum(rank <= 10 for rank in ranks) / len(ranks)


def test_its_figures_are_those_of_the_manifest_and_popularity_is_left_far_behind(
    bundle: Bundle, users: list[list[LoggedEvent]]
) -> None:
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    # Training ends two events before the end: the last tests, the one before it chose the epoch.
    popularity = Counter(event.item_id for events in users for event in events[:-2])
    model_ranks, popularity_ranks = [], []
    for start in range(0, len(users), 500):
        batch = users[start : start + 500]
        inputs = window_inputs(
            [Events(events[:-1]) for events in batch], bundle.vocabulary, bundle.config.types, bundle.config.window.max
        )
        (vectors,) = session.run(["vector"], inputs.as_feed())
        for vector, events in zip(vectors, batch, strict=True):
            target = events[-1].item_id
            unseen = set(CATALOGUE) - {event.item_id for event in events}
            scores = dict(zip(bundle.vocabulary.ids, bundle.item_vectors @ vector, strict=True))
            model_ranks.append(1 + sum(scores[item_id] >= scores[target] for item_id in unseen))
            popularity_ranks.append(1 + sum(popularity[item_id] >= popularity[target] for item_id in unseen))

    recorded = bundle.manifest.metrics
    assert recorded["held_out_users"] == len(users)
    assert ndcg_at_10(model_ranks) == pytest.approx(recorded["ndcg@10"], abs=1e-3)
    assert hit_rate_at_10(model_ranks) == pytest.approx(recorded["hr@10"], abs=1e-3)
    assert ndcg_at_10(popularity_ranks) == pytest.approx(recorded["popularity_ndcg@10"], abs=1e-6)
    assert hit_rate_at_10(popularity_ranks) == pytest.approx(recorded["popularity_hr@10"], abs=1e-6)
    assert recorded["ndcg@10"] > 5 * recorded["popularity_ndcg@10"]


def test_it_knows_the_whole_shop_by_readable_titles(bundle: Bundle) -> None:
    assert set(bundle.vocabulary.rows) == set(CATALOGUE)
    assert bundle.metadata == CATALOGUE
    assert bundle.config.types == ("click", "view")
    assert bundle.config.window == WindowRule(max=50, keep=25)
    assert bundle.config.dim == 32


def test_it_is_small_enough_to_ship(bundle: Bundle) -> None:
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 1_000_000


def test_the_encoder_gives_its_golden_sample_on_this_machine(bundle: Bundle) -> None:
    session = onnxruntime.InferenceSession(bundle.encoder_path, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vector"], bundle.golden.inputs.as_feed())
    np.testing.assert_allclose(vectors, bundle.golden.vectors, atol=1e-4)
    best = 1 + np.argsort(-(vectors @ bundle.item_vectors[1:].T), axis=1)[:, :10]
    assert best.tolist() == bundle.golden.top.tolist()
