from pathlib import Path

import pytest

from export.pooling import write_pooling_bundle
from models.spec import ItemMetadata, WindowRule
from streams.errors import UsageError
from streams.services.registry import publish
from streams.settings import ModelSettings, Settings

ITEMS = ["i0", "i1", "i2"]


def bundle_titled(path: Path, title: str) -> Path:
    metadata = {item: ItemMetadata(title=f"{title} {item}") for item in ITEMS}
    write_pooling_bundle(path, ITEMS, dim=4, window=WindowRule(max=4, keep=2), metadata=metadata)
    return path


def test_a_bundle_that_differs_in_titles_only_is_refused_and_the_published_one_stays(tmp_path: Path) -> None:
    settings = Settings(model=ModelSettings(registry=tmp_path / "registry", provider="cpu"))
    first, second = bundle_titled(tmp_path / "first", "Old"), bundle_titled(tmp_path / "second", "New")
    published = publish(settings, first)
    assert publish(settings, first).path == published.path
    with pytest.raises(UsageError, match=r"differs from it in metadata\.json only.*set model\.bundle to that folder"):
        publish(settings, second)
    assert publish(settings, first).metadata["i0"].title == "Old i0"
