"""What is done to a running pipeline. A fault is a function of a `Round`; `FAULTS` at the end names them all.

A fault waits for conditions; only where time itself is the fault does it wait for time. When it returns, everything that it
broke is there again, though not yet recovered.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil
from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # 2.16
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from deploy.local.servers import KafkaServer
from tests.faults import wrong_clock
from tests.faults.round import OTHER_SPACE, OTHER_VERSION, Round
from tests.faults.stack import COPIES
from tests.integration import crash_worker
from tests.integration.pipeline import REFUSED, SESSION_S, Worker

_DELIVERY_FAILED: Final = 13
_LOST_TAIL: Final = 21
_TERMINATED: Final = -signal.SIGTERM
_EVOLVE_STEPS: Final = (
    crash_worker.AFTER_ENCODE,
    crash_worker.AFTER_PRODUCE,
    crash_worker.BETWEEN_SWAPS,
    crash_worker.AFTER_SWAP,
    crash_worker.AFTER_ACK,
)


# Workers


def kill(on: Round) -> None:
    """SIGKILL some workers at once, and some again: at work, while they start, while they are given partitions."""
    for _ in range(on.rng.randint(1, 4)):
        running = [worker for worker in on.workers() if worker.is_running]
        if running:
            victims = on.rng.sample(running, on.rng.randint(1, len(running)))
            on.note(f"kill {_names(victims)}")
            on.kill(*victims)
        on.wait_for_traffic(on.rng.randint(20, 600))


def kill_at_step(on: Round) -> None:
    """A worker dies at one step of the protocol."""
    step = on.rng.choice((*_EVOLVE_STEPS, crash_worker.BEFORE_RAW_COMMIT))
    worker = on.rng.choice(on.workers("ingest" if step in crash_worker.INGEST_STEPS else "evolve"))
    call = on.rng.randint(2, 8)
    on.note(f"kill {worker.name} at {step}, the {call}th time")
    on.ends_at(worker, step, call)


def terminate(on: Round) -> None:
    """SIGTERM in the middle of a batch: it must end with 0."""
    worker = on.rng.choice(on.workers())
    on.note(f"terminate {worker.name} in the middle of a batch")
    if worker.name.startswith("evolve"):
        code = on.ends_at(worker, crash_worker.TERM_BEFORE_SWAP, on.rng.randint(2, 8))
        assert code in {None, 0}, f"{worker.name} was told to stop and ended with {code}"
        return
    on.wait_until(worker.is_ready, f"{worker.name} is ready")
    before = len(worker.exits)
    worker.signal(signal.SIGTERM)
    on.wait_until(lambda: len(worker.exits) > before, f"{worker.name} ends")
    assert worker.exits[before] == 0, f"{worker.name} was told to stop and ended with {worker.exits[before]}"


def freeze(on: Round) -> None:
    """A worker is stopped, at any moment or before its swap, until others have its partitions; and then goes on."""
    worker = on.rng.choice(on.workers())
    if worker.name.startswith("evolve") and on.rng.random() < 0.5:
        on.note(f"freeze {worker.name} before its swap")
        on.replace(worker, crash_worker.command(crash_worker.FREEZE_BEFORE_SWAP, on.rng.randint(2, 6)))
        on.wait_until(worker.is_frozen, f"{worker.name} is frozen")
    else:
        on.note(f"freeze {worker.name}")
        on.wait_until(worker.is_ready, f"{worker.name} is ready")
        worker.signal(signal.SIGSTOP)
    try:
        # Not progress alone: it may have had nothing that others need to take over.
        on.pass_time(SESSION_S + 1)
        on.wait_for_progress()
    finally:
        worker.signal(signal.SIGCONT)
    on.tally.zombies += 1
    on.note(f"wake {worker.name}")


def storm(on: Round) -> None:
    """Workers join and leave, faster than the groups settle."""
    rounds = on.rng.randint(2, 4)
    on.note(f"{rounds} times an ingest and an evolve join and leave")
    for _ in range(rounds):
        guests = [on.start("ingest"), on.start("evolve")]
        if on.rng.random() < 0.5:
            on.pipeline.wait_until_ready(*guests, timeout_s=300)
        else:
            on.wait_for_traffic(on.rng.randint(50, 300))
        codes = on.stop_in_order(*guests)
        # SIGTERM may come before a service listens to it.
        assert set(codes) <= {0, _TERMINATED, None}, f"workers that were told to stop ended with {codes}"


def wrong_clocks(on: Round) -> None:
    """Workers whose clocks are hours off, and jump."""
    seconds, every = on.rng.choice((3_600, 86_400 * 3)), on.rng.choice((2, 7))
    victims = [on.rng.choice(on.workers(service)) for service in ("ingest", "evolve")]
    on.note(f"clocks of {_names(victims)} jump by ±{seconds} s every {every} s")
    for victim in victims:
        service = victim.name.partition("-")[0]
        victim.next_time([sys.executable, wrong_clock.__file__, str(seconds), str(every), service])
    on.kill(*victims)
    on.pipeline.wait_until_ready(*victims, timeout_s=300)
    on.wait_for_progress()


# Kafka


def broker_killed(on: Round) -> None:
    """A broker dies, the others go on without it, it comes back."""
    broker = on.rng.choice(on.cluster.brokers)
    on.note(f"kill broker {_number(on, broker)}")
    broker.kill()
    if on.rng.random() < 0.5:
        kill(on)
    on.wait_for_progress()
    on.note("the others go on")
    _start(on, broker)


def leaders_moved(on: Round) -> None:
    """A broker is stopped in order, so that it hands its partitions over; it comes back and gets them back."""
    broker = on.rng.choice(on.cluster.brokers)
    on.note(f"stop broker {_number(on, broker)} in order")
    broker.stop()
    on.wait_for_progress()
    _start(on, broker)
    on.wait_until(lambda: _elect_preferred_leaders(on), "its leaders are elected")


def kafka_frozen(on: Round, seconds: float | None = None) -> None:
    """No broker answers for some seconds; their connections stay."""
    seconds = on.rng.uniform(3, 8) if seconds is None else seconds
    on.note(f"freeze all brokers for {seconds:.0f} s")
    pids = [broker.pid for broker in on.cluster.brokers]
    try:
        for pid in pids:
            psutil.Process(pid).suspend()
        on.pass_time(seconds)
    finally:
        for pid in pids:
            psutil.Process(pid).resume()
    on.note("all brokers go on")
    on.wait_for_progress()


def kafka_away_for_over_a_minute(on: Round) -> None:
    """So long that deliveries fail."""
    kafka_frozen(on, 75)


def disk_full(on: Round) -> None:
    """A broker can write no more, as when its disk is full: it ends, the others go on, it comes back with room.

    What Linux refuses is a write past a size of file (setrlimit), not past the disk's end, so it says EFBIG and not ENOSPC;
    to Kafka both are the same failure of its log directory. It needs no rights and no disk of its own.
    """
    broker = on.rng.choice(on.cluster.brokers)
    on.note(f"the disk of broker {_number(on, broker)} is full")
    psutil.Process(broker.pid).rlimit(psutil.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    on.wait_until(lambda: not broker.is_running, "the broker has given up")
    on.wait_for_progress()
    _start(on, broker)


def frame_too_large(on: Round) -> None:
    """The topic takes no frame any more: delivery fails between two batches of ingest. Then it takes them again."""
    topic = on.names.interactions
    ingests = on.workers("ingest")
    before = sum(worker.exits.count(_DELIVERY_FAILED) for worker in ingests)
    on.note("interactions takes no frame")
    _configure(on, topic, "max.message.bytes", "100")
    on.wait_until(
        lambda: sum(worker.exits.count(_DELIVERY_FAILED) for worker in ingests) > before, "an ingest ends with 13"
    )
    on.note("interactions takes frames again")
    _configure(on, topic, "max.message.bytes", None)


def frame_lost(on: Round) -> None:
    """One frame of a batch does not arrive, the others do: ingest must end before it commits or sends on."""
    worker = on.rng.choice(on.workers("ingest"))
    call = on.rng.randint(3, 20)
    on.note(f"{worker.name} loses its {call}th frame")
    code = on.ends_at(worker, crash_worker.LOSE_FRAME, call)
    assert code in {None, _DELIVERY_FAILED}, f"{worker.name} lost a frame and ended with {code}"


def topic_made_anew(on: Round) -> None:
    """A raw topic is deleted and made anew under a running ingest, which refuses it until somebody adopts it.

    Kafka drops a group's offsets of a topic that is deleted, a little later: an ingest that starts after that knows of nothing
    to refuse, and rightly reads the new topic from its beginning.
    """
    topic = on.names.carts
    on.traffic.hold(topic)
    on.wait_for_progress()
    old = f"{topic}@{len(on.pipeline.deleted_ids) + 1}"
    kept = on.ask(lambda: on.pipeline.read(topic), "the topic can be read")
    topic_id = on.ask(lambda: on.pipeline.topic_id(topic), "the topic has an id")
    on.note(f"delete {topic}")
    _delete(on, topic)
    on.pipeline.create_topic(topic, 2)
    on.pipeline.deleted_ids[topic_id] = old
    on.pipeline.deleted.extend(message._replace(topic=old) for message in kept)
    on.note(f"{topic} is made anew")
    # To a producer that has seen it without partitions, messages for it are errors.
    on.wait_until(lambda: on.pipeline.producer_knows(topic, 2), "the traffic's producer knows the new topic")
    on.traffic.release()
    ingests = on.workers("ingest")
    new_id = on.ask(lambda: on.pipeline.topic_id(topic), "the new topic has an id")

    def is_read() -> bool:
        """Whether ingest goes on in the new topic; while it refuses to, this sees to it as an operator would."""
        refused = [worker for worker in ingests if _has_refused(worker)]
        is_taken = on.pipeline.ids_of_committed(topic) == {new_id}
        if refused == ingests and not is_taken:
            # A member that was killed stays in the group for a while, and nothing can be adopted as long.
            is_taken = on.pipeline.run("topics", "adopt", topic, "--yes").returncode == 0
            on.note(f"{topic} is {'adopted' if is_taken else 'not adopted yet'}")
        if is_taken:
            for worker in refused:
                worker.start()
        return is_taken and all(worker.is_ready() for worker in ingests)

    on.wait_until(is_read, "ingest reads the new topic")


# Redis


def redis_restarted(on: Round) -> None:
    """Redis is restarted in order, its data written."""
    on.note("restart Redis")
    on.redis.restart()


def redis_emptied(on: Round) -> None:
    """Redis comes back without its data: every evolve refuses to go on, and one is told to rebuild."""
    evolves = on.workers("evolve")
    on.note("restart Redis without its data")
    on.wait_until(_commits_of_evolve(on), "every partition has a commit")
    with on.watcher.lost_tail():
        on.redis.restart_empty()
    on.wait_until(lambda: all(map(_has_refused, evolves)), "every evolve refuses the empty Redis")
    on.note("rebuild")
    first, *others = evolves
    first.start([sys.executable, "-m", "streams.cli", "evolve", "--rebuild"])
    on.wait_until(lambda: all(mark >= 0 for mark in on.pipeline.watermarks().values()), "every partition is begun")
    for worker in others:
        worker.start()
    on.wait_for_progress()


def redis_failed_over(on: Round) -> None:
    """The primary dies; its replica, which has everything, takes its place."""
    on.redis.wait_until_in_step()
    on.note("Redis fails over")
    # Between the last look at the replica and the kill it may fall behind.
    with on.watcher.lost_tail():
        on.redis.fail_over()


def redis_failed_over_behind(on: Round) -> None:
    """The primary dies; its replica, which lacks what came last, takes its place."""
    on.redis.wait_until_in_step()
    on.redis.part()
    on.note("the replica of Redis falls behind")
    applied = on.pipeline.applied_frames()
    on.wait_until(lambda: on.pipeline.applied_frames() > applied + 20, "20 frames are applied that the replica lacks")
    on.note("Redis fails over to the replica")
    with on.watcher.lost_tail():
        on.redis.fail_over()


def redis_full(on: Round) -> None:
    """Redis is out of memory for a while."""
    on.note("Redis is out of memory")
    with on.redis.client() as client:
        try:
            used: Any = client.info("memory")
            client.config_set("maxmemory", used["used_memory"] // 2)
            _wait_for_retries(on)
        finally:
            client.config_set("maxmemory", 0)
    on.note("Redis has memory again")


def redis_slow(on: Round) -> None:
    """Everything that Redis says takes longer; and once it says nothing for longer than workers wait."""
    on.note("Redis is slow")
    on.redis.proxy.slow(on.rng.uniform(0.05, 0.2))
    on.wait_for_progress()
    on.redis.proxy.mend()
    on.note("Redis hangs for 7 s")
    on.redis.proxy.hold()
    on.pass_time(7)
    on.redis.proxy.mend()


def redis_cut(on: Round) -> None:
    """Workers cannot reach Redis for a while."""
    on.note("Redis cannot be reached")
    on.redis.proxy.cut()
    _wait_for_retries(on)
    on.redis.proxy.mend()
    on.note("Redis can be reached again")


def answers_lost(on: Round) -> None:
    """Redis does what it is asked, and the connection breaks before it says so."""
    count = on.rng.randint(3, 12)
    on.note(f"{count} answers of Redis are lost")
    on.redis.proxy.lose_answers(count)
    on.wait_until(lambda: on.redis.proxy.answers_to_lose == 0, "that many are lost")


# What is served


def model_swapped(on: Round) -> None:
    """Another version of the model takes the place of the one that is served, or that one comes back."""
    other = on.bundle.parent / OTHER_VERSION
    versions = {path: str(json.loads((path / "config.json").read_text())["version"]) for path in (on.bundle, other)}
    for path in versions:
        on.operate("model", "publish", str(path))
    path = on.rng.choice(list(versions))
    on.note(f"activate version {versions[path]}")
    # Where it is served already, or the generation is of other vectors, it is refused, as it must be.
    if on.operate("model", "activate", versions[path], refused=("is served already", "other items, item vectors")):
        _kill_one(on)
    else:
        on.note("which is refused")


def generation_activated(on: Round) -> None:
    """Another generation is filled, with any of the models, and served from then on; the one before may be dropped."""
    name = f"r{len(on.history)}"
    bundle = on.rng.choice((on.bundle, on.bundle.parent / OTHER_VERSION, on.bundle.parent / OTHER_SPACE))
    before = on.ask(on.pipeline.served, "Redis tells which generation is served")
    on.note(f"fill generation {name} with model {bundle.name}")
    on.operate("backfill", "--generation", name, "--bundle", str(bundle), "--workers", "1", "--execute")
    on.note(f"activate it in the place of {before}")
    on.operate("generations", "activate", name, "--ignore-limits", refused=("is served already",))
    _kill_one(on)
    on.wait_for_progress()
    if on.rng.random() < 0.5:
        on.note(f"drop {before}")
        on.operate("generations", "drop", before, "--yes", refused=("there is no generation",))


def _kill_one(on: Round) -> None:
    """Whoever is about to change over may die in the midst of it."""
    if on.rng.random() < 0.5:
        victim = on.rng.choice(on.workers("evolve"))
        on.note(f"kill {victim.name}")
        on.kill(victim)


# Parts of faults


def _names(workers: list[Worker]) -> str:
    return ", ".join(worker.name for worker in workers)


def _number(on: Round, broker: KafkaServer) -> int:
    return on.cluster.brokers.index(broker) + 1


def _start(on: Round, broker: KafkaServer) -> None:
    """Start a broker again, and wait until it has caught up with the others."""
    broker.kill()
    broker.start(300)
    on.note(f"broker {_number(on, broker)} is back")
    on.wait_until(lambda: _all_in_sync(on), "every broker has every message")
    on.note("it has every message")


def _all_in_sync(on: Round) -> bool:
    topics = on.kafka.list_topics(timeout=10).topics
    return all(len(p.isrs) == COPIES for topic in topics.values() for p in topic.partitions.values())


def _elect_preferred_leaders(on: Round) -> bool:
    names = (*on.names.types, on.names.interactions, on.names.recommendations, on.names.dead_letters)
    topics = on.kafka.list_topics(timeout=10).topics
    partitions = [TopicPartition(name, number) for name in names for number in topics[name].partitions]
    for error in on.kafka.elect_leaders(ElectionType.PREFERRED, partitions).result().values():
        if error is not None and error.code() != KafkaError.ELECTION_NOT_NEEDED:
            raise KafkaException(error)
    return True


def _configure(on: Round, topic: str, name: str, value: str | None) -> None:
    """Set a topic's configuration; None: back to the default."""
    operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
    entry = ConfigEntry(name, value, incremental_operation=operation)
    change = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])

    def is_done() -> bool:
        on.kafka.incremental_alter_configs([change])[change].result()
        return True

    on.wait_until(is_done, f"{topic} is configured")


def _delete(on: Round, topic: str) -> None:
    on.kafka.delete_topics([topic])
    on.wait_until(lambda: topic not in on.kafka.list_topics(timeout=10).topics, "the topic is gone")


def _has_refused(worker: Worker) -> bool:
    return not worker.is_running and worker.exits[-1:] == [REFUSED]


def _commits_of_evolve(on: Round) -> Callable[[], bool]:
    return lambda: all(on.pipeline.committed_frames().values())


def _wait_for_retries(on: Round) -> None:
    """Wait until an evolve has asked Redis in vain."""

    def retries() -> dict[tuple[str, int], float]:
        """Of each process: one that is started again counts from nothing."""
        return {
            (worker.name, len(worker.exits)): worker.metric("driftline_evolve_retries_total")
            for worker in on.workers("evolve")
        }

    before = retries()
    on.wait_until(
        lambda: any(count > before.get(process, 0) for process, count in retries().items()), "evolve asks Redis again"
    )


@dataclass(frozen=True)
class Fault:
    """A fault and when it is chosen.

    Attributes:
        weight: How often, in comparison with the others; 0: only when it is asked for by name.
        exits: What workers may end with because of it, besides 0, SIGKILL and what a restart heals.
    """

    run: Callable[[Round], None]
    weight: float = 1
    exits: frozenset[int] = frozenset()


# All that there is. Another one is a function above and a line here; what it makes the oracle expect goes to `Round.judge`.
FAULTS: Final[Mapping[str, Fault]] = {
    "kill": Fault(kill, 12),
    "kill-at-step": Fault(kill_at_step, 3),
    "terminate": Fault(terminate),
    "freeze": Fault(freeze, 2),
    "storm": Fault(storm),
    "wrong-clocks": Fault(wrong_clocks, 0.5),
    "broker-killed": Fault(broker_killed),
    "leaders-moved": Fault(leaders_moved, 0.7),
    "kafka-frozen": Fault(kafka_frozen, 0.7),
    "kafka-away": Fault(kafka_away_for_over_a_minute, 0.1),
    "disk-full": Fault(disk_full, 0.5),
    "frame-too-large": Fault(frame_too_large, 0.7),
    "frame-lost": Fault(frame_lost, 0.7),
    "topic-made-anew": Fault(topic_made_anew, 0.5, frozenset({REFUSED})),
    "redis-restarted": Fault(redis_restarted, 0.7),
    "redis-emptied": Fault(redis_emptied, 0.4, frozenset({_LOST_TAIL, REFUSED})),
    "redis-failed-over": Fault(redis_failed_over, 0.7, frozenset({_LOST_TAIL})),
    "redis-failed-over-behind": Fault(redis_failed_over_behind, 1, frozenset({_LOST_TAIL})),
    "redis-full": Fault(redis_full, 0.7),
    "redis-slow": Fault(redis_slow, 0.5),
    "redis-cut": Fault(redis_cut, 0.7),
    "answers-lost": Fault(answers_lost, 0.7),
    "model-swapped": Fault(model_swapped),
    "generation-activated": Fault(generation_activated, 1, frozenset({_LOST_TAIL})),
}
