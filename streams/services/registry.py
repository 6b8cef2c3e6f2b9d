"""Published models: a folder of versions that every worker sees, and which of them is served."""

import os
import shutil
from contextlib import closing
from pathlib import Path
from time import time
from typing import Literal

from msgspec import Struct

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from streams.contracts.generation import Generation, Serving
from streams.errors import UsageError
from streams.services.bundle import find_bundle
from streams.services.parts import check_space, open_engine, record_model
from streams.settings import Settings
from streams.store.redis import RedisGenerations

_AGAIN = "look at `driftline generations list`"


class Published(Struct, frozen=True):
    """A version in the registry.

    Attributes:
        created_at: When it was exported, ISO 8601.
        fits: ``served`` now; ``in place`` of the served one; only in a generation of its own by ``backfill``; ``broken``.
        error: What is wrong with a broken one.
    """

    version: str
    name: str | None
    created_at: str | None
    fits: Literal["served", "in place", "backfill", "broken"]
    path: str
    metrics: dict[str, float]
    error: str | None = None


def publish(settings: Settings, source: Path) -> Bundle:
    """Copy a bundle into the registry as a version, once it has been seen to work here.

    Returns:
        The copy. One that is there already is checked, and left as it is.

    Raises:
        BundleError: It is broken or tampered with, or the copy is.
        EncoderFailed: It does not give what its golden sample says.
        UsageError: There is no registry, or it cannot be written, or holds the version with other titles or topics of items.
    """
    registry = _registry(settings)
    bundle = read_bundle(source)
    open_engine(settings, bundle)
    place = registry / bundle.config.version
    if place.exists():
        try:
            found = read_bundle(place)
        except BundleError as error:
            raise BundleError(f"{error}. It is the published copy: remove {place}, and publish again") from error
        # No part of the version: with another one every row would be encoded again, to the same vector.
        if found.metadata != bundle.metadata:
            raise UsageError(
                f"version {bundle.config.version} is in {place} already, and {source} differs from it in metadata.json "
                "only: titles and topics of items make no other version. To use these, set model.bundle to that folder "
                "on every machine and start again: what is served is looked for there first"
            )
        return found
    # Beside its place, and renamed when it is whole: a worker never sees half of it.
    beside = registry / f".{bundle.config.version}.{os.getpid()}"
    try:
        registry.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, beside)
        read_bundle(beside)
        beside.rename(place)
    except OSError as error:
        if not place.exists():  # else somebody has just published the same
            raise UsageError(f"model.registry {registry} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return read_bundle(place)


def list_published(settings: Settings) -> list[Published]:
    """Every version in the registry, the newest first, and what can be done with each.

    Raises:
        UsageError: There is no registry.
    """
    registry = _registry(settings)
    with closing(RedisGenerations(settings.redis)) as generations:
        serving = generations.serving()
        record = generations.find(serving.generation)
    folders = [path for path in registry.glob("*") if path.is_dir() and not path.name.startswith(".")]
    served = serving.model or (record.model if record else "")
    found = [_published(path, record, served) for path in folders]
    return sorted(found, key=lambda each: (each.created_at or "", each.version), reverse=True)


def activate_version(settings: Settings, version: str) -> Serving:
    """Let live workers serve a version of the registry in the place of the one that they serve.

    Raises:
        UsageError: It is served already, or nothing is served yet.
        StateRefused: Its vectors are of another space.
        BundleError, EncoderFailed: It cannot be loaded here. Nothing has changed.
    """
    place = _registry(settings) / version
    if not place.is_dir():
        raise UsageError(
            f"there is no version {version} in model.registry {place.parent}; `driftline model list` shows those that "
            "there are, `driftline model publish` adds one"
        )
    bundle = read_bundle(place)
    if bundle.config.version != version:
        raise BundleError(f"{place} holds version {bundle.config.version}; publish it again under its own name")
    with closing(RedisGenerations(settings.redis)) as generations:
        return _serve(settings, generations, bundle)


def roll_back(settings: Settings) -> Serving:
    """Let live workers serve the version before the one that they serve.

    Raises:
        UsageError: Nothing was served before, or it was in another generation.
        BundleError, EncoderFailed: It cannot be loaded here. Nothing has changed.
    """
    with closing(RedisGenerations(settings.redis)) as generations:
        serving = generations.serving()
        if not serving.previous_model:
            raise UsageError(f"there is nothing to go back to: no other model was activated; {_AGAIN}")
        if serving.previous_generation != serving.generation:
            raise UsageError(
                f"the model before was served from generation {serving.previous_generation}: "
                f"`driftline generations activate {serving.previous_generation}` goes back"
            )
        before = Serving(serving.generation, serving.previous_model)
        return _serve(settings, generations, find_bundle(settings, before, generations.find(serving.generation)))


def _serve(settings: Settings, generations: RedisGenerations, bundle: Bundle) -> Serving:
    serving = generations.serving()
    name, version = serving.generation, bundle.config.version
    record = generations.find(name)
    if record is None:
        raise UsageError(
            f"generation {name} holds nothing yet, so there is no model to take the place of. Start evolve with "
            f"model.bundle {bundle.path}"
        )
    served = serving.model or record.model
    if served == version:
        raise UsageError(f"version {version} is served already")
    # What workers will do: one that does not work here never gets in, nor one of another space.
    open_engine(settings, bundle, name)
    check_space(record, bundle)
    new = Serving(name, version, name, served, round(time() * 1000))
    if not generations.serve(serving, new):
        raise UsageError(f"something else was activated at this moment; {_AGAIN}")
    # Only now: what is recorded is taken for what is served.
    record_model(generations, name, bundle)
    return new


def _published(path: Path, record: Generation | None, served: str) -> Published:
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        return Published(path.name, None, None, "broken", str(path), {}, str(error))
    version = bundle.config.version
    fits: Literal["served", "in place", "backfill"] = "backfill"
    if version == served:
        fits = "served"
    elif record is None or record.space == bundle.space:
        fits = "in place"
    manifest = bundle.manifest
    return Published(version, bundle.config.name, manifest.created_at, fits, str(path), dict(manifest.metrics))


def _registry(settings: Settings) -> Path:
    if settings.model.registry is None:
        raise UsageError(
            "there is no registry: set model.registry to a folder that every worker sees, such as one on a shared disk"
        )
    return settings.model.registry
