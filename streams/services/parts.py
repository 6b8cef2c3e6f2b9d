"""What evolve is put together from, opened from the settings."""

from dataclasses import dataclass
from pathlib import Path

from models.bundle import read_bundle
from streams.interest.encode import Encoder
from streams.interest.engine import Engine, EngineRules
from streams.log.kafka import Producer
from streams.services.applier import EngineLike, Outbox
from streams.settings import Settings
from streams.store.protocol import StateStore
from streams.store.redis import RedisStore

DEMO_BUNDLE = Path(__file__).parent.parent / "demo" / "bundle"


@dataclass(frozen=True, slots=True)
class Parts:
    """The store, the engine and the way out. Tests put wrappers in their place, to kill a worker at a step."""

    store: StateStore
    engine: EngineLike
    outbox: Outbox


def open_engine(settings: Settings) -> tuple[Engine, Encoder]:
    """Load the bundle and its encoder, and replay the golden sample.

    Raises:
        BundleError: The bundle is missing, broken or tampered with.
        EncoderFailed: It does not run here.
    """
    bundle = read_bundle(settings.model.bundle or DEMO_BUNDLE)
    encoder = Encoder(bundle, settings.model.provider, settings.model.threads)
    chosen = settings.recommendations
    rules = EngineRules(
        chosen.k, chosen.filter_seen, chosen.because, settings.evolve.dedupe_memory, settings.redis.generation
    )
    return Engine(bundle, encoder, rules), encoder


def open_parts(settings: Settings, engine: Engine) -> Parts:
    """Connect to Redis and Kafka; both connections are made at first use."""
    return Parts(RedisStore(settings.redis), engine, Producer(settings.kafka))
