"""What is recorded of published models, where it is stored: a real Redis."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deploy.local.servers import RedisServer
from export.pooling import write_pooling_bundle
from models.bundle import Bundle
from models.spec import WindowRule
from streams.contracts.generation import Serving
from streams.errors import UsageError
from streams.services import registry
from streams.services.parts import open_engine, record_model
from streams.settings import ModelSettings, RedisSettings, Settings
from streams.store.redis import RedisGenerations
from tests.small_models import write_doubled_bundle

ITEMS = [f"item-{number}" for number in range(30)]
WINDOW = WindowRule(max=6, keep=3)


@pytest.fixture
def first(tmp_path: Path) -> Bundle:
    return write_pooling_bundle(tmp_path / "first", ITEMS, dim=8, window=WINDOW)


@pytest.fixture
def second(tmp_path: Path) -> Bundle:
    return write_doubled_bundle(tmp_path / "second", ITEMS, dim=8, window=WINDOW)


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path, first: Bundle) -> Settings:
    return Settings(
        redis=RedisSettings(url=SecretStr(redis_server.url)),
        model=ModelSettings(bundle=first.path, registry=tmp_path / "registry", provider="cpu"),
    )


@pytest.fixture
def generations(settings: Settings, first: Bundle) -> Iterator[RedisGenerations]:
    """As an evolve has begun to write the first generation."""
    with closing(RedisGenerations(settings.redis)) as opened:
        record_model(opened, "g1", first)
        yield opened


def fits(settings: Settings) -> dict[str, str]:
    return {each.version: each.fits for each in registry.list_published(settings)}


def test_a_version_is_said_to_be_served_once_it_is(
    settings: Settings, generations: RedisGenerations, first: Bundle, second: Bundle
) -> None:
    for bundle in (first, second):
        registry.publish(settings, bundle.path)
    old, new = first.config.version, second.config.version
    assert fits(settings) == {old: "served", new: "in place"}
    registry.activate_version(settings, new)
    assert fits(settings) == {old: "in place", new: "served"}
    # A worker that is late still records what it was told to serve before.
    record_model(generations, "g1", first)
    assert fits(settings) == {old: "in place", new: "served"}
    registry.roll_back(settings)
    assert fits(settings) == {old: "served", new: "in place"}


def test_a_version_that_was_too_late_is_not_recorded_as_served(
    settings: Settings, generations: RedisGenerations, second: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = generations.find("g1")
    registry.publish(settings, second.path)

    def open_slowly(*arguments: Any) -> Any:
        opened = open_engine(*arguments)
        assert generations.serve(Serving("g1"), Serving("g7", "another"))
        return opened

    monkeypatch.setattr(registry, "open_engine", open_slowly)
    with pytest.raises(UsageError, match="something else was activated at this moment"):
        registry.activate_version(settings, second.config.version)
    assert generations.find("g1") == before
