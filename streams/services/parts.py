"""What evolve is put together from, opened from the settings."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Literal, Protocol

import msgspec
import structlog

from models.bundle import Bundle, read_bundle
from streams.contracts.generation import Generation, Serving
from streams.errors import StateRefused
from streams.interest.encode import Encoder, open_scorer
from streams.interest.engine import Engine, EngineRules
from streams.log.producer import Producer
from streams.services.applier import EngineLike, Outbox
from streams.services.bundle import bundle_path, find_bundle
from streams.settings import Settings
from streams.store.protocol import ErasureStore, StateStore
from streams.store.redis import RedisErasures, RedisGenerations, RedisStore, RedisSweep

_logger = structlog.get_logger("driftline.evolve")


class Sweep(Protocol):
    """What evolve needs to find rows of other versions; `streams.store.redis.RedisSweep` is one."""

    def unswept(self, partitions: Sequence[int], activation: str) -> list[int]:
        """The partitions that were not looked through to their end since this activation."""

    def record(self, partition: int, activation: str) -> None:
        """Record that a partition has no row of another version left."""

    def outdated(self, partitions: Collection[int], model: str) -> Iterator[list[tuple[int, str]]]:
        """Partitions and ids of users whose row is another version's, step by step."""


@dataclass(frozen=True, slots=True)
class Served:
    """A generation's rows and the model that they are written with.

    Attributes:
        provider: What the model runs on.
        sweep: Finds rows that other versions wrote.
    """

    serving: Serving
    store: StateStore
    engine: EngineLike
    provider: str
    sweep: Sweep


@dataclass(frozen=True, slots=True)
class Parts:
    """What is served, and the way out. Tests put wrappers in their place, to kill a worker at a step.

    Attributes:
        serving: Asks what is to be served; raises `StoreUnavailable`.
        open: Opens that; raises whatever `open_served` does.
    """

    serving: Callable[[], Serving]
    open: Callable[[Serving], Served]
    outbox: Outbox
    erasures: ErasureStore


def open_parts(settings: Settings) -> Parts:
    """Connect to Redis and Kafka; both connections are made at first use."""
    generations = RedisGenerations(settings.redis)
    return Parts(
        generations.serving,
        lambda serving: open_served(settings, generations, serving),
        Producer(settings.kafka),
        RedisErasures(settings.redis),
    )


def open_served(settings: Settings, generations: RedisGenerations, serving: Serving) -> Served:
    """Load the model that a generation is served with, beside any that is loaded already, and connect to its rows.

    Raises:
        BundleError: The bundle is missing, broken or tampered with.
        EncoderFailed: It does not run here.
        SettingsError: The recommendations are to be what this model cannot give.
        StateRefused: The generation's vectors are of another space than the model's.
        StoreUnavailable: Redis does not answer.
    """
    record = generations.find(serving.generation)
    bundle = find_bundle(settings, serving, record)
    if settings.model.bundle not in (None, bundle.path):
        _logger.warning("another model than that of model.bundle was activated", served=serving.model, path=bundle.path)
    engine, encoder = open_engine(settings, bundle, serving.generation)
    record_model(generations, serving.generation, bundle)
    name = serving.generation
    return Served(serving, RedisStore(settings.redis, name), engine, encoder.provider, RedisSweep(settings.redis, name))


def open_engine(
    settings: Settings,
    bundle: Bundle | None = None,
    generation: str | None = None,
    mode: Literal["live", "replay"] = "live",
) -> tuple[Engine, Encoder]:
    """Load a bundle's encoder and scorer, and replay the golden sample.

    Args:
        bundle: Without one, that of the settings.
        generation: That recommendations are for; without one, that of the settings.
        mode: Whether its recommendations are of new events or of replayed ones.

    Raises:
        BundleError: The bundle is missing, broken or tampered with.
        EncoderFailed: It does not run here.
        SettingsError: The recommendations are to be what this model cannot give.
    """
    bundle = bundle or read_bundle(bundle_path(settings.model.bundle))
    encoder = Encoder(bundle, settings.model.provider, settings.model.threads)
    scorer = open_scorer(bundle, settings.model.provider, settings.model.threads)
    chosen = settings.recommendations
    rules = EngineRules(
        chosen.k,
        chosen.filter_seen,
        chosen.because,
        settings.evolve.dedupe_memory,
        generation or settings.redis.generation,
        mode,
        exploration=chosen.exploration,
        rerank=chosen.rerank,
        rerank_pool=chosen.rerank_pool,
        diversity=chosen.diversity,
    )
    return Engine(bundle, encoder, rules, scorer), encoder


def record_model(generations: RedisGenerations, name: str, bundle: Bundle) -> None:
    """Record whose vectors a generation holds: this model's, if it is of the space of the one before.

    Raises:
        StateRefused: It is not.
    """
    config, path = bundle.config, str(bundle.path.resolve())
    new = Generation(name, config.name, config.version, bundle.space, path, round(time() * 1000), "live")
    if generations.register(new):
        return
    known = generations.find(name)
    if known is None or known.model == config.version:
        return
    check_space(known, bundle)
    generations.record(msgspec.structs.replace(new, created_ms=known.created_ms, origin=known.origin))


def check_space(known: Generation, bundle: Bundle) -> None:
    """Refuse a model whose vectors are of another space than those of a generation.

    Raises:
        StateRefused: It is one.
    """
    if known.space != bundle.space:
        config = bundle.config
        raise StateRefused(
            f"generation {known.name} holds vectors of model {known.model_name} {known.model}; {config.name} "
            f"{config.version} at {bundle.path} has other items, item vectors or another window rule, and readers would mix "
            f"the two. Fill a generation of its own with `driftline backfill --generation NAME --bundle {bundle.path} "
            f"--execute`, then `driftline generations activate NAME`. Or go on with the model before, at {known.bundle}"
        )
