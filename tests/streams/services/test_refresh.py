"""Rows that another version of the model wrote are encoded again, as they are."""

from pathlib import Path

import numpy as np
import pytest

from export.pooling import write_pooling_bundle
from models.spec import WindowRule
from streams.contracts.recommendation import decode_recommendation
from streams.interest.encode import Encoder
from streams.interest.engine import Engine
from streams.store.memory import MemoryStore
from tests.small_models import write_doubled_bundle
from tests.streams.services.workbench import (
    NOW_MS,
    InteractionsLog,
    PoisonedEncoder,
    RawEvent,
    RecordingOutbox,
    Worker,
    engine_of,
)

ITEMS = [f"i{number}" for number in range(12)]
RULE = WindowRule(max=6, keep=3)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    """Two versions with the same items; the vectors of the second are twice as long."""
    folder = tmp_path_factory.mktemp("models")
    first = write_pooling_bundle(folder / "a", ITEMS, dim=4, window=RULE)
    second = write_doubled_bundle(folder / "b", ITEMS, dim=4, window=RULE)
    assert first.config.version != second.config.version
    assert first.space == second.space
    return engine_of(first), engine_of(second)


def applied(engine: Engine, outbox: RecordingOutbox | None = None) -> Worker:
    log = InteractionsLog()
    log.append_events(RawEvent("ana", "i1", 1), RawEvent("bea", "i2", 2), RawEvent("ana", "i3", 3, NOW_MS + 1))
    worker = Worker(log, MemoryStore(), engine, outbox or RecordingOutbox())
    worker.assign()
    worker.drain()
    return worker


def test_rows_of_another_version_get_the_vector_and_the_version_of_this_one_and_nothing_is_sent(
    engines: tuple[Engine, Engine],
) -> None:
    outbox = RecordingOutbox()
    worker = applied(engines[0], outbox)
    before = {record.user_id: record.row for record in worker.store.scan_users()}
    sent = len(outbox.delivered)
    worker.applier.move(worker.store, engines[1], worker.log.extents)
    assert worker.applier.refresh([(0, "ana"), (0, "bea"), (0, "nobody")]) == 2
    after = {record.user_id: record.row for record in worker.store.scan_users()}
    assert after.keys() == before.keys()
    for user, row in after.items():
        assert row.model == engines[1].model_version
        assert row.state == before[user].state
        new_vector, old_vector = (np.frombuffer(each.vector, "<f4") for each in (row, before[user]))
        np.testing.assert_allclose(new_vector, 2 * old_vector, rtol=1e-6)
        new, old = (decode_recommendation(each.recommendations) for each in (row, before[user]))
        assert new.trigger == old.trigger
        assert new.model.version == engines[1].model_version
        assert new.recommendation_id != old.recommendation_id
    assert len(outbox.delivered) == sent


def test_a_row_of_this_version_is_left_as_it_is(engines: tuple[Engine, Engine]) -> None:
    worker = applied(engines[0])
    before = list(worker.store.scan_users())
    assert worker.applier.refresh([(0, "ana"), (0, "bea")]) == 0
    assert list(worker.store.scan_users()) == before


def test_users_of_a_partition_that_is_another_workers_are_left_out(engines: tuple[Engine, Engine]) -> None:
    worker = applied(engines[0])
    worker.applier.move(worker.store, engines[1], worker.log.extents)
    assert worker.applier.refresh([(1, "ana")]) == 0


def test_a_worker_that_was_overtaken_refreshes_nothing(engines: tuple[Engine, Engine]) -> None:
    worker = applied(engines[0])
    worker.applier.move(worker.store, engines[1], worker.log.extents)
    other = Worker(worker.log, worker.store, engines[0], RecordingOutbox())
    worker.log.append_events(RawEvent("ana", "i5", 9, NOW_MS + 5))
    other.assign()
    other.drain()
    before = list(worker.store.scan_users())
    assert worker.applier.refresh([(0, "ana"), (0, "bea")]) == 0
    assert list(worker.store.scan_users()) == before


def test_a_row_that_breaks_the_model_is_left_and_the_others_follow(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    worker = applied(engines[0])
    bundle = write_doubled_bundle(tmp_path / "bundle", ITEMS, dim=4, window=RULE)
    poisoned = PoisonedEncoder(Encoder(bundle, "cpu"), {bundle.vocabulary.rows["i2"]}, lambda: ValueError("no"))
    engine = engine_of(bundle, poisoned)
    worker.applier.move(worker.store, engine, worker.log.extents)
    assert worker.applier.refresh([(0, "ana"), (0, "bea")]) == 1
    versions = {record.user_id: record.row.model for record in worker.store.scan_users()}
    assert versions == {"ana": engine.model_version, "bea": engines[0].model_version}
