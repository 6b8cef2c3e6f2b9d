"""MovieLens-100K, the choices of 943 real people over seven months, through a real Kafka and a real Redis.

Two ingest and two evolve workers apply it while it is produced. Afterwards plain Python over the input file says what
every user's window must be. Events per second are printed (`pytest -s`), not asserted.
"""

import gzip
import json
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.local.servers import KafkaServer, RedisServer
from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from tests.integration.oracle import Log, Message, Rule, read_model, window_of
from tests.integration.pipeline import Account, Names, Pipeline, Raw

RATINGS = Path(__file__).parents[3] / "shared" / "data" / "ml-100k.inter.gz"
# The most active user has rated 737 films: with this rule a window holds all that a user ever did.
WHOLE = Rule(longest=1000, keep=1000)
CUT = Rule(longest=50, keep=25)
K = 10

pytestmark = [
    pytest.mark.skipif(
        not RATINGS.is_file(), reason=f"needs MovieLens-100K as {RATINGS.name} in shared/data beside the repository"
    ),
    # Less than a minute on an idle machine.
    pytest.mark.timeout(300),
]

Choice = tuple[int, str, str, str]  # time in ms, event id, item, type


@dataclass(frozen=True)
class Sent:
    """What was produced.

    Attributes:
        choices: Each user's choices in the order of time, from the input file alone.
        repeats: Messages that were sent a second time.
        bad: Messages that are no events.
    """

    choices: dict[str, list[Choice]]
    messages: list[Raw]
    repeats: int
    bad: int


@dataclass(frozen=True)
class Outcome:
    """What came out, with one window rule or the other."""

    log: Log
    account: Account
    rows: dict[str, dict[str, bytes]]
    letters: list[Message]
    applied_by_workers: float
    dropped_by_workers: float


def messages_of(path: Path, names: Names) -> Sent:
    """The log in order of time: a rating of 4 or 5 is a click, the others are views; with repeats and bad messages."""
    rng = random.Random(0)
    with gzip.open(path, "rt") as file:
        lines = [line.rstrip("\n").split("\t") for line in file][1:]
    lines.sort(key=lambda line: (float(line[3]), int(line[0]), int(line[1])))
    choices: dict[str, list[Choice]] = defaultdict(list)
    messages: list[Raw] = []
    again: list[tuple[int, Raw]] = []
    repeats = bad = 0
    for number, (user, item, rating, timestamp) in enumerate(lines):
        topic, kind = (names.clicks, "click") if float(rating) >= 4 else (names.views, "view")
        time_ms, event_id = int(float(timestamp)) * 1000, f"rating-{number:06d}"
        event = {"user_id": user, "item_id": item, "event_time": time_ms, "event_id": event_id, "value": float(rating)}
        choices[user].append((time_ms, event_id, item, kind))
        message = Raw(topic, user, json.dumps(event).encode())
        messages.append(message)
        if number % 100 == 50:
            again.append((number + rng.randrange(20), message))
        while again and again[0][0] <= number:
            messages.append(again.pop(0)[1])
            repeats += 1
        if number % 1000 == 500:
            messages.append(Raw(topic, user, rng.choice([b"{", b"[]", None, b'{"user_id": "1"}'])))
            bad += 1
    for _, message in again:
        messages.append(message)
        repeats += 1
    return Sent(choices, messages, repeats, bad)


@pytest.fixture(scope="module")
def names() -> Names:
    return Names.under(f"real-{uuid4().hex[:8]}-")


@pytest.fixture(scope="module")
def sent(names: Names) -> Sent:
    return messages_of(RATINGS, names)


@pytest.fixture(scope="module")
def servers(kafka_session: KafkaServer, redis_session: RedisServer) -> tuple[str, str]:
    for server in (kafka_session, redis_session):
        if not server.is_running:
            server.start()
    return kafka_session.bootstrap_servers, redis_session.url


@pytest.fixture(scope="module")
def live(servers: tuple[str, str], names: Names, sent: Sent, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two workers of each kind, while the log is produced; windows are cut as in production."""
    return run(servers, names, CUT, sent, tmp_path_factory.mktemp("live"), None)


@pytest.fixture(scope="module")
def replayed(
    live: Outcome, servers: tuple[str, str], names: Names, sent: Sent, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """Two more evolve workers that read the interactions log again into windows that are never cut."""
    own = names.with_evolve_of(Names.under(f"whole-{uuid4().hex[:8]}-"))
    return run(servers, own, WHOLE, sent, tmp_path_factory.mktemp("whole"), live.log)


def run(servers: tuple[str, str], names: Names, rule: Rule, sent: Sent, directory: Path, log: Log | None) -> Outcome:
    """Run the workers until everything is applied, and let the oracle look at it.

    Args:
        log: The interactions log, where it is there already; None: produce, and let ingest make it.
    """
    bundle = directory / "bundle"
    items = sorted({item for choices in sent.choices.values() for _, _, item, _ in choices})
    write_pooling_bundle(bundle, items, window=WindowRule(max=rule.longest, keep=rule.keep))
    with Pipeline(directory, *servers, names, bundle) as pipeline:
        pipeline.create_topics()
        services = ("ingest", "ingest", "evolve", "evolve") if log is None else ("evolve", "evolve")
        workers = [pipeline.start(service) for service in services]
        started = time.monotonic()
        if log is None:
            pipeline.wait_until_ready(*workers)
            started = time.monotonic()
            pipeline.produce(sent.messages)
        pipeline.wait_until_applied(90)
        seconds = time.monotonic() - started
        outcomes = {
            outcome: sum(worker.metric("driftline_evolve_events_total", outcome=outcome) for worker in workers)
            for outcome in ("applied", "repeat", "late")
        }
        assert all(not worker.exits for worker in workers)
        assert set(pipeline.stop()) == {0}
        log = pipeline.read_log() if log is None else log
        account = pipeline.check(rule, read_model(bundle), K, log)
        sys.stdout.write(f"\napplied in {seconds:.1f} s, {len(sent.messages) / seconds:,.0f} messages/s: {account}\n")
        return Outcome(
            log,
            account,
            pipeline.rows(),
            pipeline.read(names.dead_letters),
            outcomes["applied"],
            outcomes["repeat"] + outcomes["late"],
        )


def test_every_users_window_holds_exactly_the_users_choices_in_the_input_file(replayed: Outcome, sent: Sent) -> None:
    found = {key.rpartition(":")[2]: window_of(row) for key, row in replayed.rows.items()}
    assert len(found) == 943
    assert sum(map(len, found.values())) == 100_000
    for user, choices in sent.choices.items():
        assert found[user] == choices, f"user {user}"


def test_a_window_that_was_cut_holds_the_newest_of_the_users_choices_in_the_input_file(
    live: Outcome, sent: Sent
) -> None:
    found = {key.rpartition(":")[2]: window_of(row) for key, row in live.rows.items()}
    assert set(found) == set(sent.choices)
    for user, choices in sent.choices.items():
        assert len(found[user]) <= CUT.longest
        newest = CUT.keep if len(choices) > CUT.longest else len(choices)
        assert found[user][-newest:] == choices[-newest:], f"user {user}"


def test_every_message_is_applied_or_a_repeat_or_late_or_dead_lettered(
    live: Outcome, replayed: Outcome, sent: Sent
) -> None:
    assert replayed.account[:6] == (len(sent.messages), 943, 100_000, sent.repeats, 0, sent.bad)
    account = live.account
    assert (account.raw, account.bad) == (len(sent.messages), sent.bad)
    assert account.applied + account.repeats + account.late == 100_000 + sent.repeats
    assert len(live.letters) == sent.bad


def test_the_workers_own_counts_agree(live: Outcome, replayed: Outcome) -> None:
    for outcome in (live, replayed):
        assert outcome.applied_by_workers == outcome.account.applied
        assert outcome.dropped_by_workers == outcome.account.repeats + outcome.account.late


def test_nothing_is_sent_twice_when_nothing_dies(live: Outcome, replayed: Outcome) -> None:
    for outcome in (live, replayed):
        assert outcome.account.resent_events == 0
        assert outcome.account.resent_letters == 0
        assert outcome.account.resent_recommendations == 0
