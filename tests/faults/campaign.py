"""Rounds of faults, one after the other, and what they come to."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from confluent_kafka import KafkaException
from redis.exceptions import RedisError

from deploy.local.servers import KafkaCluster, ServerError
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.errors import DriftlineError
from tests.faults.faults import FAULTS
from tests.faults.round import OTHER_SPACE, OTHER_VERSION, Entry, Round
from tests.faults.traffic import ITEMS, RULE
from tests.integration import oracle
from tests.integration.oracle import Doubled, Versions, read_model
from tests.small_models import write_doubled_bundle

# Enough for several at a time to be killed, woken and moved around; more would only be slower to start.
WORKERS: Final = {"ingest": 2, "evolve": 3}
_FAULTS_A_ROUND: Final = 12
_LOG_LINES: Final = 25


@dataclass
class Report:
    """What a round, or several, came to.

    Attributes:
        seed: Of the first round; each following round's is one higher.
        events: Raw messages that were sent.
        lost: Valid events in no frame or missing in a window, and bad ones in no dead letter.
        twice: Events more than once in a window.
        violation: What the oracle, or a wait that never ended, said; None: all is well.
        history: Of the round that failed, else of the last one.
        log: The ends of its workers' logs.
    """

    seed: int
    rounds: int = 0
    kills: int = 0
    zombies: int = 0
    rebalances: int = 0
    events: int = 0
    applied: int = 0
    repeats: int = 0
    late: int = 0
    bad: int = 0
    resent_events: int = 0
    resent_recommendations: int = 0
    lost: int = 0
    twice: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    violation: str | None = None
    failed_seed: int | None = None
    history: list[Entry] = field(default_factory=list)
    log: str = ""

    def recovery_s(self, percentile: float) -> float:
        """A percentile of the times to recover from a kill; NaN where nobody was killed."""
        return float(np.percentile(self.recoveries_s, percentile)) if self.recoveries_s else float("nan")

    @property
    def verdict(self) -> str:
        """In one line."""
        return (
            f"{'PASSED' if self.violation is None else 'FAILED'}: seed {self.seed}, {self.rounds} rounds: "
            f"{self.kills:,} kills, {self.zombies:,} zombies, {self.rebalances:,} rebalances, {self.events:,} events; "
            f"{self.lost:,} lost, {self.twice:,} twice; recovery after a kill p50 {self.recovery_s(50):.1f} s, "
            f"p99 {self.recovery_s(99):.1f} s"
        )


def write_bundles(directory: Path) -> tuple[Path, Versions]:
    """Small models: one to begin with, another version of it, and one of other vectors; and what the oracle knows of them.

    Returns:
        The first one's folder, in which the names of the others are beside it (`round.OTHER_VERSION`, `round.OTHER_SPACE`).
    """
    window = WindowRule(max=RULE.longest, keep=RULE.keep)
    path = directory / "first"
    first = write_pooling_bundle(path, list(ITEMS), dim=16, window=window)
    second = write_doubled_bundle(directory / OTHER_VERSION, list(ITEMS), dim=16, window=window)
    third = write_pooling_bundle(directory / OTHER_SPACE, list(ITEMS), dim=24, window=window)
    model = read_model(path)
    doubled = Doubled(model.rows, model.vectors)
    known = ((first, model), (second, doubled), (third, read_model(third.path)))
    return path, Versions({bundle.config.version: of_bundle for bundle, of_bundle in known})


def schedule(seed: int, only: Sequence[str] = (), count: int = _FAULTS_A_ROUND) -> list[str]:
    """The faults of a round: the same for the same seed.

    Args:
        only: Choose among these; none: among all, each as often as its weight says.
    """
    rng = random.Random(f"schedule {seed}")
    names = list(only or FAULTS)
    return rng.choices(names, [FAULTS[name].weight if not only else 1 for name in names], k=count)


def run_round(
    report: Report,
    directory: Path,
    cluster: KafkaCluster,
    bundle: Path,
    model: Versions,
    seed: int,
    faults: Sequence[str],
    *,
    workers: Mapping[str, int] = WORKERS,
    commands: Mapping[str, Sequence[str]] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Do these faults to a pipeline of its own, judge it, and add to the report what came of it.

    Args:
        commands: What to run instead of a service.
        say: Is told what is being done.
    """
    with Round(directory, cluster, bundle, seed, workers=workers, commands=commands or {}) as on:
        try:
            _do(on, report, faults, say)
            say("comparing everything with the oracle")
            account = on.judge(model)
        except (AssertionError, TimeoutError, DriftlineError, ServerError, KafkaException, RedisError) as error:
            report.violation, report.failed_seed = f"{type(error).__name__}: {error}", seed
            report.log = on.pipeline.tails()
            report.lost, report.twice = _count_wrongs(on)
        except KeyboardInterrupt:
            report.violation, report.failed_seed = "interrupted before its end", seed
        else:
            report.events += account.raw
            report.applied += account.applied
            report.repeats += account.repeats
            report.late += account.late
            report.bad += account.bad
            report.resent_events += account.resent_events
            report.resent_recommendations += account.resent_recommendations
        report.rounds += 1
        report.kills += on.tally.kills
        report.zombies += on.tally.zombies
        report.recoveries_s += on.watcher.recoveries_s
        report.rebalances += _rebalances(cluster, on)
        report.history = on.history
        if report.violation is None:
            on.delete_topics()
        else:
            report.events += on.traffic.sent


def _do(on: Round, report: Report, faults: Sequence[str], say: Callable[[str], None]) -> None:
    say("starting the workers")
    on.begin()
    for name in faults:
        say(name)
        fault = FAULTS[name]
        on.may_end_with |= fault.exits
        report.faults[name] += 1
        fault.run(on)
        # Some come while the one before is not healed yet.
        if on.rng.random() < 0.7:
            on.wait_until_recovered()
        else:
            on.wait_for_traffic(on.rng.randint(20, 200))
    say("waiting until nothing moves any more")
    on.wait_until_recovered()
    on.finish()


def _rebalances(cluster: KafkaCluster, on: Round) -> int:
    """How often the groups were put together anew, as the brokers' logs tell."""
    said = [f"Stabilized group {group} generation" for group in (on.names.ingest_group, on.names.evolve_group)]
    count = 0
    for broker in cluster.brokers:
        with broker.log_path.open(errors="replace") as log:
            count += sum(any(words in line for words in said) for line in log)
    return count


def _count_wrongs(on: Round) -> tuple[int, int]:
    """How many events are lost and how many are there twice, after the oracle found that something is wrong.

    The oracle stops at the first; this counts, by the same rules. Where Kafka or Redis does not answer there is nothing to
    count.
    """
    pipeline = on.pipeline
    try:
        raw = [*pipeline.deleted, *pipeline.read(*on.names.types)]
        frames = pipeline.read(on.names.interactions)
        letters = pipeline.read(on.names.dead_letters)
        rows = pipeline.served_rows()
    except (DriftlineError, KafkaException, RedisError):
        return 0, 0
    judged = {message.place: oracle.judge(message, on.names.types) for message in raw}
    first: dict[oracle.Place, oracle.Event] = {}
    for frame in frames:
        for event in oracle.read_frame(frame, pipeline.deleted_ids):
            first.setdefault(event.place, event)
    buried = {oracle.place_of_letter(letter) for letter in letters}
    lost = sum(place not in (buried if event is None else first) for place, event in judged.items())
    by_user: dict[str, list[oracle.Event]] = {}
    for event in first.values():
        by_user.setdefault(event.user, []).append(event)
    found = {key.partition(":user:")[2]: Counter(oracle.window_of(row)) for key, row in rows.items()}
    twice = 0
    for user, events in by_user.items():
        expected = Counter(oracle.replay(events, RULE).window)
        window = found.get(user, Counter())
        lost += (expected - window).total()
        twice += sum(count - max(1, expected[entry]) for entry, count in window.items() if count > 1)
    return lost, twice


def last_lines(text: str) -> str:
    """The end of a log."""
    return "\n".join(text.splitlines()[-_LOG_LINES:])
