"""Checks of everything that a deployment needs, each with what was found and how to mend it."""

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final, Literal, TypeVar

from msgspec import Struct

from models.bundle import Bundle, read_bundle
from streams.errors import AuthenticationFailed, DriftlineError
from streams.interest.encode import Encoder, open_scorer
from streams.log.admin import LogAdmin
from streams.log.topics import Topic
from streams.services.bundle import bundle_path
from streams.services.topics import roles
from streams.settings import Settings
from streams.store.redis import ServerFacts, open_served_store

Verdict = Literal["ok", "warning", "failed", "skipped"]

_OLDEST_REDIS: Final = (6, 2)
_Result = TypeVar("_Result")


class Check(Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        verdict: "warning": it works, and should be known; "skipped": another failure kept it from being looked at.
        found: What there is.
        mend: What to do; empty where there is nothing to do.
    """

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


class Diagnosis(Struct, frozen=True):
    """All checks; ``ok`` unless one failed."""

    ok: bool
    checks: list[Check]


def diagnose(load: Callable[[], Settings]) -> Diagnosis:
    """Run every check, whatever the others find; Kafka, Redis and the model at the same time.

    Args:
        load: Reads the settings.
    """
    try:
        settings = load()
    except DriftlineError as error:
        names = ("kafka", "topics", "redis", "memory", "persistence", "bundle", "provider")
        mend = "correct what is named; README, Settings, lists every setting"
        return _diagnosis(
            [
                Check("settings", "failed", str(error), mend),
                *(_skipped(name, "the settings cannot be read") for name in names),
            ]
        )
    with ThreadPoolExecutor(max_workers=3) as threads:
        kafka = threads.submit(_check_kafka, settings)
        redis = threads.submit(_check_redis, settings)
        model = threads.submit(_check_model, settings)
        reached, topics = _found(kafka, lambda unexpected: (unexpected("kafka"), None))
        stored, partitions = _found(redis, lambda unexpected: ([unexpected("redis")], None))
        of_model = _found(model, lambda unexpected: [unexpected("bundle")])
    return _diagnosis(
        [Check("settings", "ok", "every setting is known and good"), reached]
        + (
            [_skipped("topics", "Kafka did not answer")]
            if topics is None
            else _check_topics(settings, topics, partitions)
        )
        + stored
        + of_model
    )


def _found(check: Future[_Result], otherwise: Callable[[Callable[[str], Check]], _Result]) -> _Result:
    try:
        return check.result()
    # Whatever a library throws at us here is a finding: a doctor that dies of what it meets helps nobody.
    except Exception as error:  # noqa: BLE001
        found = f"unexpected: {type(error).__name__}: {error}"
        return otherwise(lambda name: Check(name, "failed", found, "this is a bug of ours; please report it"))


def _diagnosis(checks: list[Check]) -> Diagnosis:
    return Diagnosis(all(check.verdict != "failed" for check in checks), checks)


def _skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", f"not looked at: {why}")


# Kafka


class _Topics(Struct, frozen=True):
    existing: dict[str, Topic]
    configs: dict[str, dict[str, str]]


def _check_kafka(settings: Settings) -> tuple[Check, _Topics | None]:
    kafka = settings.kafka
    try:
        with LogAdmin(kafka) as admin:
            existing = admin.existing_topics(roles(settings))
            # Without ids this is librdkafka's mock cluster, which answers no more.
            configs = admin.topic_configs([name for name, topic in existing.items() if topic.topic_id])
    except AuthenticationFailed as error:
        mend = "set kafka.security_protocol, kafka.sasl_mechanism, kafka.sasl_username and a password to the cluster's"
        return Check("kafka", "failed", str(error), mend), None
    except DriftlineError as error:
        mend = (
            "start Kafka, or set kafka.bootstrap_servers (--bootstrap-servers) to where it is; a broker that wants TLS "
            "or a login and gets none falls silent too: see kafka.security_protocol"
        )
        return Check("kafka", "failed", str(error), mend), None
    login = f", logged in as {kafka.sasl_username}" if kafka.sasl_username else ""
    found = f"{kafka.bootstrap_servers} answers over {kafka.security_protocol}{login}"
    return Check("kafka", "ok", found), _Topics(existing, configs)


def _check_topics(settings: Settings, topics: _Topics, store_partitions: int | None) -> list[Check]:
    """Of the topics: they exist, the count of partitions fits the store, the log is kept, dead letters fit."""
    names = settings.topics
    missing = [name for name in roles(settings) if name not in topics.existing]
    checks = []
    if missing:
        checks.append(
            Check(
                "topics", "failed", f"missing: {', '.join(missing)}", "run `driftline topics create`, which makes them"
            )
        )
    interactions = topics.existing.get(names.interactions)
    if interactions is not None and store_partitions not in (None, interactions.partitions):
        checks.append(
            Check(
                "topics",
                "failed",
                f"{interactions.name} has {interactions.partitions} partitions, the store was filled with "
                f"{store_partitions}: evolve refuses to start, for users would be in other partitions",
                f"make {interactions.name} anew with {store_partitions} partitions and adopt it, or set "
                "redis.generation to a new name and rebuild with `driftline evolve --rebuild`",
            )
        )
    retention = topics.configs.get(names.interactions, {}).get("retention.ms", "-1")
    if retention != "-1":
        checks.append(
            Check(
                "topics",
                "warning",
                f"{names.interactions} deletes frames after {int(retention) / 86_400_000:g} days, so the store cannot "
                "be rebuilt from the whole log",
                f"set retention.ms of {names.interactions} to -1, unless that is meant",
            )
        )
    largest = _largest_message(topics, names.dead_letters)
    sources = {name: size for name in names.sources if (size := _largest_message(topics, name)) is not None}
    if largest is not None and sources and largest <= max(sources.values()):
        checks.append(
            Check(
                "topics",
                "warning",
                f"{names.dead_letters} takes messages of {largest:,} bytes, the raw topics of "
                f"{max(sources.values()):,}: the largest bad event would not fit with our headers, and ingest would "
                "stop at it",
                f"raise max.message.bytes of {names.dead_letters} by at least 64 KiB above the raw topics'",
            )
        )
    if not checks:
        partitions = "" if interactions is None else f"; {interactions.name} has {interactions.partitions} partitions"
        fits = " as the store has" if store_partitions is not None else ", the store is empty"
        checks.append(Check("topics", "ok", f"all {len(topics.existing)} exist{partitions}{fits}"))
    return checks


def _largest_message(topics: _Topics, name: str) -> int | None:
    value = topics.configs.get(name, {}).get("max.message.bytes")
    return None if value is None else int(value)


# Redis


def _check_redis(settings: Settings) -> tuple[list[Check], int | None]:
    try:
        with closing(open_served_store(settings.redis)) as store:
            facts = store.facts()
            partitions = store.partitions()
    except AuthenticationFailed as error:
        return _redis_failed(str(error), "set redis.username and a password to the server's; it needs INFO too"), None
    except DriftlineError as error:
        return _redis_failed(
            str(error), "start Redis, or set redis.url (--redis-url) to where it is; rediss:// where it wants TLS"
        ), None
    return [_check_server(settings, facts), _check_memory(facts), _check_persistence(facts)], partitions


def _redis_failed(found: str, mend: str) -> list[Check]:
    return [
        Check("redis", "failed", found, mend),
        _skipped("memory", "Redis did not answer"),
        _skipped("persistence", "Redis did not answer"),
    ]


def _check_server(settings: Settings, facts: ServerFacts) -> Check:
    where = f"{settings.redis.masked_url} is version {facts.version}"
    number = re.match(r"(\d+)\.(\d+)", facts.version)
    if number is None or (int(number[1]), int(number[2])) < _OLDEST_REDIS:
        return Check("redis", "failed", where, "upgrade to Redis 6.2 or newer")
    if facts.role != "master":
        found = f"{where} and a {facts.role}, which takes no writes"
        return Check("redis", "failed", found, "set redis.url to the primary, or to a name that follows it")
    if facts.is_cluster:
        found = f"{where} and a node of a Redis Cluster, of whose keys it has only a part"
        return Check(
            "redis", "failed", found, "use a Redis that is not a cluster: this version cannot follow its moves"
        )
    return Check("redis", "ok", where)


def _check_memory(facts: ServerFacts) -> Check:
    limit = f"maxmemory {facts.max_memory:,} bytes" if facts.max_memory else "no maxmemory"
    found = f"maxmemory-policy {facts.eviction}, {limit}"
    if facts.eviction.startswith("allkeys-"):
        return Check(
            "memory",
            "failed",
            f"{found}: when memory is full it may evict a watermark, and evolve then refuses to start as if the store "
            "had been emptied",
            "set maxmemory-policy noeviction: writes then fail when memory is full, and evolve waits",
        )
    if facts.eviction.startswith("volatile-"):
        return Check(
            "memory",
            "warning" if facts.max_memory else "ok",
            f"{found}: watermarks never expire, so they are safe, but when memory is full users' rows are evicted "
            "before their time, windows included",
            "set maxmemory-policy noeviction, or give Redis memory for all active users",
        )
    return Check("memory", "ok", f"{found}: nothing is evicted")


def _check_persistence(facts: ServerFacts) -> Check:
    if facts.append_only or facts.snapshots:
        how = " and ".join(
            name for name, on in (("an append-only file", facts.append_only), ("snapshots", facts.snapshots)) if on
        )
        return Check("persistence", "ok", f"Redis keeps {how}; what a crash loses is read from the log again")
    if facts.snapshots is None:
        return Check("persistence", "warning", "no append-only file; whether snapshots are on, Redis does not tell")
    return Check(
        "persistence",
        "warning",
        "neither append-only file nor snapshots: a restart of Redis loses every row and watermark",
        "set appendonly yes; otherwise the whole log has to be applied again (`driftline evolve --rebuild`)",
    )


# The model


def _check_model(settings: Settings) -> list[Check]:
    try:
        bundle = read_bundle(bundle_path(settings.model.bundle))
    except DriftlineError as error:
        mend = "export the model again, or set model.bundle (--bundle) to where it is"
        return [Check("bundle", "failed", str(error), mend), _skipped("provider", "there is no model to run")]
    return [_check_golden(bundle), _check_provider(settings, bundle)]


def _check_golden(bundle: Bundle) -> Check:
    config = bundle.config
    try:
        Encoder(bundle, "cpu").verify()
        open_scorer(bundle, "cpu")
    except DriftlineError as error:
        return Check("bundle", "failed", str(error), "export the model again on a machine where it passes")
    found = f"{config.name} {config.version}, {len(bundle.vocabulary):,} items, dim {config.dim}"
    return Check("bundle", "ok", f"{found}; files are whole and the golden sample is repeated")


def _check_provider(settings: Settings, bundle: Bundle) -> Check:
    asked = settings.model.provider
    try:
        provider = Encoder(bundle, asked, settings.model.threads).provider
    except DriftlineError as error:
        mend = "install the driver and `pip install 'driftline[cuda]'`, or set model.provider to auto or cpu"
        return Check("provider", "failed", str(error), mend)
    return Check("provider", "ok", f"asked for {asked}, the session got {provider}; it repeats the golden sample")
