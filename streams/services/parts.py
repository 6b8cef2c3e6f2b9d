"""What evolve is put together from, opened from the settings."""

from dataclasses import dataclass

from models.bundle import read_bundle
from streams.interest.encode import Encoder, open_scorer
from streams.interest.engine import Engine, EngineRules
from streams.log.producer import Producer
from streams.services.applier import EngineLike, Outbox
from streams.services.bundle import bundle_path
from streams.settings import Settings
from streams.store.protocol import ErasureStore, StateStore
from streams.store.redis import RedisErasures, RedisStore


@dataclass(frozen=True, slots=True)
class Parts:
    """The store, the engine and the way out. Tests put wrappers in their place, to kill a worker at a step."""

    store: StateStore
    engine: EngineLike
    outbox: Outbox
    erasures: ErasureStore


def open_engine(settings: Settings) -> tuple[Engine, Encoder]:
    """Load the bundle with its encoder and scorer, and replay the golden sample.

    Raises:
        BundleError: The bundle is missing, broken or tampered with.
        EncoderFailed: It does not run here.
        SettingsError: The recommendations are to be what this model cannot give.
    """
    bundle = read_bundle(bundle_path(settings.model.bundle))
    encoder = Encoder(bundle, settings.model.provider, settings.model.threads)
    scorer = open_scorer(bundle, settings.model.provider, settings.model.threads)
    chosen = settings.recommendations
    rules = EngineRules(
        chosen.k,
        chosen.filter_seen,
        chosen.because,
        settings.evolve.dedupe_memory,
        settings.redis.generation,
        exploration=chosen.exploration,
        rerank=chosen.rerank,
        rerank_pool=chosen.rerank_pool,
        diversity=chosen.diversity,
    )
    return Engine(bundle, encoder, rules, scorer), encoder


def open_parts(settings: Settings, engine: Engine) -> Parts:
    """Connect to Redis and Kafka; both connections are made at first use."""
    return Parts(RedisStore(settings.redis), engine, Producer(settings.kafka), RedisErasures(settings.redis))
