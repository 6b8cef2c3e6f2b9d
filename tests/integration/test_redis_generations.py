from collections.abc import Callable, Iterator

import msgspec
import pytest
from pydantic import SecretStr
from redis import Redis

from deploy.local.servers import RedisServer
from streams.contracts.frame import Source, partition_of
from streams.contracts.generation import Generation, Plan, Progress, Request, Serving
from streams.errors import StateRefused, UsageError
from streams.interest.engine import UserRow
from streams.services.generations import compare_generations
from streams.settings import RedisSettings, Settings
from streams.store.protocol import Watermark
from streams.store.redis import RedisFilling, RedisGenerations, RedisStore
from streams.store.redis.filling import ClaimLost, FilledWindow, WatermarkMoved
from tests.integration.waiting import wait_until
from tests.store_contract import CLICKS, PARTITIONS, TOPIC_ID, row, swap

G1 = Generation("g1", "pooling", "aaaaaaaaaaaa", "space-a", "/models/a", 1_000, "live")
G2 = Generation("g2", "sasrec", "bbbbbbbbbbbb", "space-b", "/models/b", 2_000, "backfill")
PLAN = Plan(Request("interactions"), PARTITIONS, 3, TOPIC_ID, G2.model, 5_000)
LEASE_MS = 60_000
MARK = Watermark(7, TOPIC_ID, PARTITIONS, {CLICKS: 40, Source("views", "id-of-views", 3): 2})


@pytest.fixture
def settings(redis_server: RedisServer) -> RedisSettings:
    return RedisSettings(url=SecretStr(redis_server.url))


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def generations(settings: RedisSettings) -> Iterator[RedisGenerations]:
    opened = RedisGenerations(settings)
    yield opened
    opened.close()


@pytest.fixture
def store(settings: RedisSettings) -> Iterator[RedisStore]:
    opened = RedisStore(settings, "g2")
    yield opened
    opened.close()


@pytest.fixture
def filling(settings: RedisSettings) -> Iterator[RedisFilling]:
    opened = RedisFilling(settings, "g2", "worker-1", LEASE_MS)
    yield opened
    opened.close()


@pytest.fixture
def other(settings: RedisSettings) -> Iterator[RedisFilling]:
    opened = RedisFilling(settings, "g2", "worker-2", LEASE_MS)
    yield opened
    opened.close()


# Which one is served


def test_until_one_is_activated_the_generation_of_the_settings_is_served(generations: RedisGenerations) -> None:
    assert generations.serving() == Serving("g1")


def test_what_is_activated_is_served_by_everybody_at_once(
    generations: RedisGenerations, settings: RedisSettings
) -> None:
    new = Serving("g2", G2.model, "g1", "", 9_000)
    assert generations.serve(Serving("g1"), new)
    reader = RedisGenerations(settings)
    assert reader.serving() == new
    reader.close()


def test_of_two_people_who_activate_at_the_same_time_the_second_is_refused(generations: RedisGenerations) -> None:
    seen = generations.serving()
    assert generations.serve(seen, Serving("g2"))
    assert not generations.serve(seen, Serving("g3"))
    assert generations.serving() == Serving("g2")


def test_a_generation_is_not_served_while_it_is_being_filled(
    generations: RedisGenerations, filling: RedisFilling
) -> None:
    filling.begin(PLAN, {0: Progress(10)})
    assert not generations.serve(Serving("g1"), Serving("g2"))
    assert generations.serve(Serving("g1"), Serving("g3"))
    filling.end(PLAN)
    assert generations.serve(Serving("g3"), Serving("g2"))


def test_a_generation_is_not_filled_while_it_is_served(generations: RedisGenerations, filling: RedisFilling) -> None:
    generations.serve(Serving("g1"), Serving("g2"))
    assert not filling.begin(PLAN, {0: Progress(10)})
    assert filling.plan() is None
    generations.serve(Serving("g2"), Serving("g1"))
    assert filling.begin(PLAN, {0: Progress(10)})


def test_a_key_that_is_not_ours_is_named(generations: RedisGenerations, client: Redis) -> None:
    client.set("driftline:generation", "something else")
    with pytest.raises(StateRefused, match=r"driftline:generation in Redis at .* is not ours"):
        generations.serving()


# What is recorded


def test_the_first_record_of_a_generation_stays(generations: RedisGenerations) -> None:
    assert generations.register(G2)
    assert generations.register(G1)
    assert not generations.register(Generation("g1", "other", "c", "space-c", "/c", 3_000, "backfill"))
    assert generations.all() == [G1, G2]
    assert (generations.find("g1"), generations.find("g9")) == (G1, None)


def test_dropping_takes_every_key_of_a_generation_and_none_of_another(
    generations: RedisGenerations, settings: RedisSettings, store: RedisStore, client: Redis
) -> None:
    kept = RedisStore(settings, "g22")  # begins as the other does
    for each in (kept, store):
        each.set_partitions(PARTITIONS)
        for number in range(700):
            user = f"user-{number}"
            each.swap([swap(partition_of(user, PARTITIONS), None, 1, {user: row(1)})])
    for number in range(8):  # of each partition only the first swap found no watermark
        store.swap([swap(number, 1, 2, {f"{number}-{n}": row(1) for n in range(150)})])
    generations.register(G2)
    before = len(list(client.scan_iter("driftline:g22:*")))
    removed = list(generations.drop("g2"))
    assert len(removed) > 1
    assert max(removed) <= 500
    assert list(client.scan_iter("driftline:g2:*")) == []
    assert generations.all() == []
    assert len(list(client.scan_iter("driftline:g22:*"))) == before
    kept.close()


# Filling


def test_a_plan_is_made_once_and_kept_until_it_is_done(filling: RedisFilling, other: RedisFilling) -> None:
    assert filling.plan() is None
    assert filling.begin(PLAN, {0: Progress(10), 1: Progress(0)})
    assert not other.begin(Plan(Request("files", ("a",)), 8, 1, "", "c", 6_000), {0: Progress(0)})
    assert other.plan() == PLAN
    assert other.progress([0, 1, 2]) == {0: Progress(10), 1: Progress(0)}
    filling.end(PLAN)
    assert other.plan() is None


def test_a_plan_is_not_begun_where_another_was_done_since_it_was_made(
    filling: RedisFilling, other: RedisFilling
) -> None:
    assert filling.claim([3])
    filling.checkpoint(3, None, Progress(8), Watermark(7, TOPIC_ID, PARTITIONS))
    assert not other.begin(PLAN, {0: Progress(0)}, filled={})
    assert not other.begin(PLAN, {0: Progress(0)}, filled={3: 6})
    assert other.plan() is None
    assert other.begin(PLAN, {0: Progress(0)}, filled={3: 7})


def test_a_plan_that_is_done_is_followed_by_one_other(filling: RedisFilling, other: RedisFilling) -> None:
    following, another = (msgspec.structs.replace(PLAN, created_ms=created_ms) for created_ms in (6_000, 7_000))
    filling.begin(PLAN, {0: Progress(10)})
    assert filling.begin(following, {0: Progress(10, events=8)}, PLAN)
    assert not other.begin(another, {0: Progress(10)}, PLAN)
    assert other.plan() == following
    assert other.progress([0]) == {0: Progress(10, events=8)}
    filling.end(PLAN)  # by one who was slow
    assert other.plan() == following


def test_each_partition_belongs_to_exactly_one_share() -> None:
    assert [PLAN.partitions_of(share) for share in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_a_partition_is_claimed_by_one_worker_until_it_gives_it_back(
    filling: RedisFilling, other: RedisFilling
) -> None:
    assert filling.claim([2, 5])
    assert filling.claim([2, 5])
    assert not other.claim([1, 5])
    assert not other.is_claimed([1])  # all or none
    filling.release([2, 5])
    assert other.claim([1, 5])


def test_a_worker_that_was_silent_for_too_long_does_not_take_its_claim_back(settings: RedisSettings) -> None:
    silent = RedisFilling(settings, "g2", "worker-3", 50)
    silent.claim([2])
    wait_until(lambda: not silent.is_claimed([2]), 60, "the claim has run out")
    with pytest.raises(ClaimLost, match="partition 2 of generation g2 is not this worker's any more"):
        wait_until(lambda: silent.keep({}), 60, "it is time to keep the claim")
    assert not silent.is_claimed([2])
    silent.close()


def test_what_a_worker_has_read_shows_before_it_is_recorded(filling: RedisFilling, other: RedisFilling) -> None:
    filling.begin(PLAN, {2: Progress(10), 3: Progress(5)})
    filling.claim([2, 3])
    read = {2: Progress(30, events=400), 3: Progress(5)}

    def told() -> bool:
        filling.keep(read)
        return other.reading([2, 3]) == read

    wait_until(told, 60, "it is told")
    assert other.progress([2, 3]) == {2: Progress(10), 3: Progress(5)}
    filling.checkpoint(2, None, Progress(40, events=500, is_done=True))
    assert other.reading([2, 3])[2] == Progress(40, events=500, is_done=True)


def test_a_window_waits_for_its_vector(filling: RedisFilling, store: RedisStore) -> None:
    store.set_partitions(PARTITIONS)
    partition = partition_of("alice", PARTITIONS)
    filling.claim([partition])
    filling.write_windows(partition, None, {"alice": FilledWindow(b"state", b"{}")})
    assert filling.unencoded(partition, 10) == ["alice"]
    assert filling.read_windows(partition, ["alice", "bob"]) == [FilledWindow(b"state", b"{}"), None]
    # No reader sees half a row.
    assert store.read_user("alice") is None
    assert list(store.scan_users()) == []

    filling.write_rows(partition, None, {"alice": row(1)})
    assert filling.count_unencoded([partition]) == 0
    found = store.read_user("alice")
    assert found is not None
    assert found.row == row(1)
    assert filling.read_windows(partition, ["alice"]) == [FilledWindow(row(1).state, None, row(1).vector, "m1")]


def test_more_users_than_one_script_call_may_hold_are_written(filling: RedisFilling) -> None:
    filling.claim([3])
    filling.write_windows(3, None, {f"user-{number}": FilledWindow(b"s", b"{}") for number in range(600)})
    assert filling.count_unencoded([3]) == 600
    assert len(filling.unencoded(3, 256)) == 256


def test_rows_expire(filling: RedisFilling, client: Redis) -> None:
    filling.claim([3])
    filling.write_windows(3, None, {"alice": FilledWindow(b"s", b"{}")})
    assert 0 < client.pttl("driftline:g2:{3}:user:alice") <= 90 * 86_400_000
    filling.write_rows(3, None, {"alice": UserRow(b"v", b"{}", b"s", "m", 1)})
    assert 0 < client.pttl("driftline:g2:{3}:user:alice") <= 90 * 86_400_000


def test_a_checkpoint_moves_progress_and_watermark_together(filling: RedisFilling, store: RedisStore) -> None:
    filling.begin(PLAN, {3: Progress(0)})
    filling.claim([3])
    filling.checkpoint(3, None, Progress(8, events=100, repeats=3, late=2, bad=1), MARK)
    assert filling.progress([3]) == {3: Progress(8, events=100, repeats=3, late=2, bad=1)}
    # A live worker goes on from there.
    assert store.read_watermarks([3]) == {3: MARK}
    filling.checkpoint(3, 7, Progress(8, events=100, repeats=3, late=2, bad=1, is_done=True))
    assert filling.progress([3])[3].is_done
    assert filling.read_watermark(3) == MARK


def test_a_worker_that_was_replaced_writes_nothing_more(filling: RedisFilling, other: RedisFilling) -> None:
    filling.claim([3])
    filling.write_windows(3, None, {"alice": FilledWindow(b"new", b"{}")})
    writes: list[Callable[[], None]] = [
        lambda: other.write_windows(3, None, {"alice": FilledWindow(b"old", b"{}")}),
        lambda: other.write_rows(3, None, {"alice": row(1)}),
        lambda: other.checkpoint(3, None, Progress(99), MARK),
    ]
    for write in writes:
        with pytest.raises(ClaimLost, match="partition 3 of generation g2 is not this worker's any more"):
            write()
    assert filling.read_windows(3, ["alice"]) == [FilledWindow(b"new", b"{}")]
    assert filling.read_watermark(3) is None
    assert filling.progress([3]) == {}


def test_whoever_fills_a_generation_that_went_live_writes_nothing_more(
    filling: RedisFilling, store: RedisStore
) -> None:
    filling.claim([3])
    filling.checkpoint(3, None, Progress(8), MARK)
    store.swap([swap(3, 7, 8, {"alice": row(2)})])
    writes: list[Callable[[], None]] = [
        lambda: filling.write_windows(3, 7, {"alice": FilledWindow(b"old", b"{}")}),
        lambda: filling.write_rows(3, 7, {"alice": row(1)}),
        lambda: filling.checkpoint(3, 7, Progress(99), Watermark(50, TOPIC_ID, PARTITIONS)),
    ]
    for write in writes:
        with pytest.raises(WatermarkMoved, match="partition 3 of generation g2 moved while it was filled"):
            write()
    assert filling.read_windows(3, ["alice"]) == [FilledWindow(row(2).state, None, row(2).vector, "m1")]
    assert store.read_watermarks([3])[3] == Watermark(8, TOPIC_ID, PARTITIONS, dict(MARK.marks))


def test_there_is_nothing_to_compare_with_before_a_worker_has_begun(
    settings: RedisSettings, generations: RedisGenerations
) -> None:
    generations.register(G2)
    with pytest.raises(UsageError, match="generation g1 is served, but no worker has begun to write it"):
        compare_generations(Settings(redis=settings), None, "g2", users=10, samples=1)
