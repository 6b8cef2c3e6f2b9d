"""A million hostile messages through a real ingest on a real Kafka, every one accounted for.

    make fuzz                                            1,000,000 messages
    make fuzz ARGS="--events 20000 --seed 7"

Noise, damaged and cut events, wrong types, deep nesting, NULs, bad UTF-8, huge ones, tombstones, strange keys, headers and
timestamps, and good events among them (`messages.py`), the same for the same seed. Ingest is the process of production. What
it writes is counted by plain means that share no code with it (`accounts.py`):

- every message is in exactly one frame or exactly one dead letter, by topic, partition and offset
- what is surely good is in a frame, what is surely bad is a dead letter with the bytes, key and headers that were sent
- ingest still answers /livez at the end, and ends with 0 when told to stop

The last line is the verdict with the counts; the exit status is 1 when anything is otherwise.
"""

import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as KafkaProducer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.local.process import ServerError, ServerProcess, free_port
from deploy.local.servers import KafkaServer
from streams.errors import DriftlineError
from streams.log.admin import LogAdmin
from streams.observe.logs import configure_logging
from streams.services.topics import create_missing_topics
from streams.settings import load_settings
from tests.fuzz.accounts import Accounts, Outcome, Sent, checksum
from tests.fuzz.messages import TOPICS, Fate, hostile_messages
from tests.integration.strange_headers import Strange, send_strange

_ROOT: Final = Path(__file__).parents[2]
_PARTITIONS: Final = 4
# confluent-kafka cannot send header names that are no UTF-8: one partition of each topic gets those, from another client.
_STRANGE: Final = _PARTITIONS - 1
_STRANGE_SHARE: Final = 100
_STRANGE_BATCH: Final = 200
_SILENCE_S: Final = 180.0
_STOP_S: Final = 60.0


class FuzzFailed(Exception):
    """The fuzzing itself could not be done."""


def main(
    events: Annotated[int, typer.Option("--events", min=1, help="Messages to send.")] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other messages.")] = 2026,
) -> None:
    """Send hostile messages through ingest and account for every one."""
    # Standard output is for the verdict; logs go beside it.
    configure_logging("console", "error", "fuzz")
    accounts = Accounts()
    with (
        tempfile.TemporaryDirectory(prefix="driftline-fuzz-") as directory,
        # Timestamps in 1970 are among what is sent: nothing may be deleted by its age.
        KafkaServer(Path(directory) / "kafka", properties={"log.retention.ms": "-1"}) as kafka,
        _progress() as progress,
    ):
        port = free_port()
        environment = _environment(kafka.bootstrap_servers, port)
        settings = load_settings(environ=environment)
        with LogAdmin(settings.kafka) as admin:
            create_missing_topics(settings, admin)
        with _ingest(Path(directory) / "ingest", environment) as ingest:
            _send(kafka.bootstrap_servers, events, seed, accounts, progress)
            topics = settings.topics
            outcome = Outcome(kafka.bootstrap_servers, topics.interactions, topics.dead_letters, _PARTITIONS)
            _account(outcome, accounts, ingest, progress)
            alive = ingest.exit_code() is None and _answers(f"http://127.0.0.1:{port}/livez")
            if ingest.exit_code() is None:
                ingest.terminate(_STOP_S)
            ended_with = ingest.exit_code()
            # What it wrote while it ended.
            while outcome.read_into(accounts):
                pass
            outcome.close()
            log = ingest.log_tail()
    failed = bool(accounts.violations) or not alive or ended_with != 0
    for complaint in accounts.wrong:
        print(complaint)
    if failed:
        print(log)
    print(
        "dead letters by reason:", ", ".join(f"{count:,} {reason}" for reason, count in accounts.reasons.most_common())
    )
    print(
        f"{'FAILED' if failed else 'PASSED'}: seed {seed}: {accounts.count:,} messages, {accounts.in_frames:,} in frames, "
        f"{accounts.dead_letters:,} dead letters; {accounts.missing:,} lost, {accounts.twice:,} twice, "
        f"{accounts.violations - accounts.missing - accounts.twice:,} otherwise wrong; ingest "
        f"{'lived' if alive else 'did not live'} and ended with {ended_with}"
    )
    sys.exit(1 if failed else 0)


def _environment(servers: str, port: int) -> dict[str, str]:
    return {
        "DRIFTLINE_KAFKA__BOOTSTRAP_SERVERS": servers,
        "DRIFTLINE_TOPICS__PARTITIONS": str(_PARTITIONS),
        "DRIFTLINE_HTTP__PORT": str(port),
        # Each batch with a dead letter is a warning, and here that is each batch.
        "DRIFTLINE_LOG__LEVEL": "error",
    }


@contextmanager
def _ingest(directory: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    directory.mkdir()
    process = ServerProcess(
        "ingest",
        [sys.executable, "-m", "streams.cli", "ingest"],
        directory=directory,
        log=directory / "log",
        environment={**environment, "PYTHONPATH": str(_ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def _progress() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def _send(servers: str, count: int, seed: int, accounts: Accounts, progress: Progress) -> None:
    task = progress.add_task("sent", total=count)
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failures.append(error)

    producer = KafkaProducer(
        {
            "bootstrap.servers": servers,
            # Keeps the order, so that the n-th message of a partition has offset n.
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "log_level": 2,
        }
    )
    strange = count // _STRANGE_SHARE
    for number, message in enumerate(hostile_messages(seed, count - strange)):
        topic = TOPICS[number % len(TOPICS)]
        partition = number // len(TOPICS) % _STRANGE
        while True:
            try:
                producer.produce(
                    topic,
                    message.value,
                    message.key,
                    partition,
                    headers=list(message.headers),
                    timestamp=message.timestamp_ms,
                    on_delivery=delivered,
                )
            except BufferError:
                producer.poll(0.1)
            else:
                break
        kept = checksum(message.value, message.key, message.headers)
        accounts.sent(topic, partition, Sent(message.fate, kept))
        if number % 1000 == 0:
            producer.poll(0)
            progress.update(task, completed=number)
    producer.flush()
    if failures:
        raise FuzzFailed(f"Kafka did not take {len(failures):,} of the messages: {KafkaException(failures[0])}")
    _send_strange(servers, strange, seed, accounts)
    progress.update(task, completed=count)


def _send_strange(servers: str, count: int, seed: int, accounts: Accounts) -> None:
    """Messages with any bytes for the names of headers."""
    rng = random.Random(seed + 1)
    # Without a value aiokafka's batches take none; the strange ones are about headers.
    messages = (message for message in hostile_messages(seed + 1, 10 * count + 100) if message.value is not None)
    for number in range(0, count, _STRANGE_BATCH):
        topic = TOPICS[number // _STRANGE_BATCH % len(TOPICS)]
        batch = []
        for message in islice(messages, min(_STRANGE_BATCH, count - number)):
            value = (message.value or b"")[:2000]
            fate = message.fate if value == message.value and not message.timestamp_ms else Fate.EITHER
            names = [b"\xff", rng.randbytes(rng.randrange(1, 9)) + b"\x80", b"a"]
            batch.append(Strange(value, message.key, [(name, rng.randbytes(5)) for name in names]))
            accounts.sent(topic, _STRANGE, Sent(fate, checksum(value, message.key, None)))
        send_strange(servers, topic, _STRANGE, batch)


def _account(outcome: Outcome, accounts: Accounts, ingest: ServerProcess, progress: Progress) -> None:
    """Read until everything has turned up, ingest has ended, or nothing more comes."""
    task = progress.add_task("accounted for", total=accounts.count)
    heard_at = time.monotonic()
    while accounts.missing and ingest.exit_code() is None and time.monotonic() - heard_at < _SILENCE_S:
        if outcome.read_into(accounts):
            heard_at = time.monotonic()
        progress.update(task, completed=accounts.accounted)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    try:
        typer.run(main)
    except (FuzzFailed, DriftlineError, ServerError) as failure:
        print(f"FAILED: the fuzzing itself: {failure}")
        sys.exit(1)
