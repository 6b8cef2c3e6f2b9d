from pathlib import Path

import pytest

from streams.contracts.recommendation import decode_recommendation
from streams.errors import SettingsError
from streams.interest.engine import UserEvents
from streams.services.parts import open_engine
from streams.settings import ModelSettings, RecommendationSettings, Settings
from tests.small_models import write_scored_bundle, write_variational_bundle
from tests.streams.interest.test_engine import ITEMS, NOW_MS, clicks


def listed(bundle: Path, recommendations: RecommendationSettings) -> list[str]:
    settings = Settings(model=ModelSettings(bundle=bundle, provider="cpu"), recommendations=recommendations)
    engine, _ = open_engine(settings)
    (update,) = engine.evolve([UserEvents("u1", None, None, clicks("i3", "i7"))], NOW_MS)
    assert update.row is not None
    return [item.item_id for item in decode_recommendation(update.row.recommendations).items]


def test_a_bundle_with_a_scorer_is_served_without_another_setting(tmp_path: Path) -> None:
    path = write_scored_bundle(tmp_path / "bundle", ITEMS, candidates=10).path
    assert len(listed(path, RecommendationSettings(k=4))) == 4


def test_the_settings_of_recommendations_reach_the_engine(tmp_path: Path) -> None:
    path = write_variational_bundle(tmp_path / "bundle", ITEMS).path
    plain = listed(path, RecommendationSettings(k=4))
    assert listed(path, RecommendationSettings(k=4, exploration=3.0)) != plain
    assert listed(path, RecommendationSettings(k=4, diversity=0.9)) == plain
    assert listed(path, RecommendationSettings(k=4, rerank="mmr", diversity=0.9)) != plain
    assert listed(path, RecommendationSettings(k=4, rerank="mmr", diversity=0.0)) == plain
    assert listed(path, RecommendationSettings(k=4, rerank="mmr", diversity=0.9, rerank_pool=4)) != listed(
        path, RecommendationSettings(k=4, rerank="mmr", diversity=0.9)
    )


def test_what_the_model_cannot_do_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write_scored_bundle(tmp_path / "bundle", ITEMS, candidates=10).path
    with pytest.raises(SettingsError, match="exploration is 1, but the model 'pooling'"):
        listed(path, RecommendationSettings(exploration=1.0))
    with pytest.raises(SettingsError, match="names no topic"):
        listed(path, RecommendationSettings(rerank="calibrated"))
