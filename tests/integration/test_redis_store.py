import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from deploy.local.servers import RedisServer
from streams.contracts.frame import partition_of
from streams.errors import AuthenticationFailed, StateRefused, StoreUnavailable
from streams.interest.engine import UserRow
from streams.settings import RedisSettings
from streams.store.protocol import StateStore, SwapResult, Watermark
from streams.store.redis import RedisStore
from tests.store_contract import CLICKS, PARTITIONS, TOPIC_ID, StoreContract, row, stored, swap


@pytest.fixture
def redis_store(redis_server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(RedisSettings(url=SecretStr(redis_server.url)))
    yield store
    store.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        yield client


class TestRedisStore(StoreContract):
    @pytest.fixture
    def store(self, redis_store: RedisStore) -> StateStore:
        return redis_store


def write_alice(store: RedisStore, vector: bytes = b"\0" * 8) -> None:
    store.set_partitions(PARTITIONS)
    alice = UserRow(vector, b'{"items":[]}', b"\x90", "m1", 1_767_225_600_000)
    store.swap([swap(partition_of("alice", PARTITIONS), None, 5, {"alice": alice}, {CLICKS: 40})])


def test_any_redis_client_finds_a_vector_with_one_line_of_arithmetic(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store, struct.pack("<3f", 0.5, -1.25, 3.0))
    partitions = int(client.get("driftline:g1:partitions") or 0)
    found = client.hget(f"driftline:g1:{{{zlib.crc32(b'alice') % partitions}}}:user:alice", "vector")
    assert isinstance(found, bytes)
    assert struct.unpack("<3f", found) == (0.5, -1.25, 3.0)


def test_keys_and_fields_are_as_documented(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    # crc32("alice") is 0x278EBC47, so alice is in partition 7 of 8.
    assert set(client.keys()) == {
        b"driftline:g1:partitions",
        b"driftline:g1:{7}:watermark",
        b"driftline:g1:{7}:user:alice",
    }
    assert client.hgetall("driftline:g1:{7}:watermark") == {
        b"offset": b"5",
        b"topic_id": TOPIC_ID.encode(),
        b"partitions": b"8",
        b"mark:clicks:id-of-clicks:0": b"40",
    }
    assert client.hgetall("driftline:g1:{7}:user:alice") == {
        b"vector": b"\0" * 8,
        b"recommendations": b'{"items":[]}',
        b"state": b"\x90",
        b"model": b"m1",
        b"updated_at": b"1767225600000",
    }


def test_prefix_and_generation_keep_rows_apart(
    redis_server: RedisServer, redis_store: RedisStore, client: Redis
) -> None:
    write_alice(redis_store)
    settings = RedisSettings(url=SecretStr(redis_server.url), key_prefix="shop.eu", generation="g2")
    other = RedisStore(settings)
    try:
        assert other.partitions() is None
        assert list(other.scan_users()) == []
        write_alice(other, b"\1" * 8)
        assert client.exists("shop.eu:g2:{7}:user:alice")
        first, second = redis_store.read_user("alice"), other.read_user("alice")
        assert first is not None
        assert second is not None
        assert (first.row.vector, second.row.vector) == (b"\0" * 8, b"\1" * 8)
        assert [record.row.vector for record in other.scan_users()] == [b"\1" * 8]
    finally:
        other.close()


def test_rows_expire_and_watermarks_do_not(redis_server: RedisServer, client: Redis) -> None:
    store = RedisStore(RedisSettings(url=SecretStr(redis_server.url), ttl_days=0.5))
    try:
        write_alice(store)
    finally:
        store.close()
    half_a_day_ms = 12 * 3600 * 1000
    assert half_a_day_ms - 60_000 < int(client.pttl("driftline:g1:{7}:user:alice")) <= half_a_day_ms
    assert client.pttl("driftline:g1:{7}:watermark") == -1
    assert client.pttl("driftline:g1:partitions") == -1


def test_every_event_gives_a_row_its_full_life_again(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    key = "driftline:g1:{7}:user:alice"
    client.pexpire(key, 1000)
    redis_store.swap([swap(7, 5, 6, {"alice": row(1)})])
    assert int(client.pttl(key)) > 89 * 86_400_000


def test_an_expired_user_is_a_new_user(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    client.delete("driftline:g1:{7}:user:alice")
    assert redis_store.read_user("alice") is None
    assert redis_store.read_rows({7: ["alice"]})[7].offset == 5


def test_a_row_that_is_not_whole_is_no_user(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    client.hdel("driftline:g1:{7}:user:alice", "state")
    assert redis_store.read_user("alice") is None
    assert list(redis_store.scan_users()) == []


@pytest.mark.parametrize("key", ["driftline:g1:{7}:user:alice", "driftline:g1:{7}:watermark"])
def test_a_key_of_somebody_elses_is_refused_and_not_overwritten(
    redis_store: RedisStore, client: Redis, key: str
) -> None:
    client.set(key, "theirs")
    with pytest.raises(StateRefused) as caught:
        redis_store.read_rows({7: ["alice"]})
    assert "is not ours" in str(caught.value)
    assert "set redis.key_prefix to a name that nothing else uses" in str(caught.value)
    assert client.get(key) == b"theirs"


def test_a_swap_onto_somebody_elses_key_writes_nothing(redis_store: RedisStore, client: Redis) -> None:
    # The reading before a swap refuses it already; but the key may have come between the two.
    write_alice(redis_store)
    client.set("driftline:g1:{7}:user:bob", "theirs")
    with pytest.raises(StateRefused):
        redis_store.swap([swap(7, 5, 6, {"carol": row(1), "bob": row(2)})])
    assert not client.exists("driftline:g1:{7}:user:carol")
    assert client.hget("driftline:g1:{7}:watermark", "offset") == b"5"
    assert client.get("driftline:g1:{7}:user:bob") == b"theirs"


def test_scripts_are_loaded_again_when_the_server_has_forgotten_them(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    client.script_flush()
    assert list(redis_store.swap([swap(7, 5, 6, {"alice": row(1)})])) == [SwapResult(swapped=True, offset=6)]
    client.script_flush()
    assert redis_store.read_rows({7: ["alice"]})[7].rows == [stored(row(1))]


def test_a_server_that_restarted_is_used_again(redis_server: RedisServer, redis_store: RedisStore) -> None:
    write_alice(redis_store)
    redis_server.stop(save=True)
    with pytest.raises(StoreUnavailable) as caught:
        redis_store.read_rows({7: ["alice"]})
    assert f"redis://127.0.0.1:{redis_server.port}/0" in str(caught.value)
    assert str(caught.value).endswith("Connection refused; is it running?")
    redis_server.start()
    assert redis_store.read_rows({7: ["alice"]})[7].offset == 5
    assert list(redis_store.swap([swap(7, 5, 6)])) == [SwapResult(swapped=True, offset=6)]


def test_every_question_says_that_the_server_is_away(redis_server: RedisServer, redis_store: RedisStore) -> None:
    redis_server.stop(save=False)
    questions = [
        redis_store.partitions,
        lambda: redis_store.set_partitions(8),
        lambda: redis_store.read_watermarks([0]),
        lambda: redis_store.replace_watermark(0, None, Watermark(0, "", 1)),
        lambda: redis_store.read_rows({0: ["u"]}),
        lambda: redis_store.swap([swap(0, None, 1)]),
        lambda: redis_store.read_user("u"),
        lambda: list(redis_store.scan_users()),
        redis_store.ping,
    ]
    for question in questions:
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            question()


def test_a_server_out_of_memory_passes_and_nothing_is_half_written(redis_store: RedisStore, client: Redis) -> None:
    write_alice(redis_store)
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="refused a command"):
            redis_store.swap([swap(7, 5, 6, {"alice": row(1), "bob": row(2)})])
        assert client.hget("driftline:g1:{7}:watermark", "offset") == b"5"
    finally:
        client.config_set("maxmemory", "0")
    assert list(redis_store.swap([swap(7, 5, 6, {"alice": row(1)})])) == [SwapResult(swapped=True, offset=6)]


@pytest.fixture(scope="module")
def locked_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("locked"), arguments=("--save", "")) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">reads", "~*", "+@read", "+@connection")
            client.config_set("requirepass", "right")
        try:
            yield server
        finally:
            # The fixture ends the server as a client without a password.
            with Redis.from_url(server.url, password="right") as client:
                client.config_set("requirepass", "")


@pytest.mark.parametrize("password", [None, "wrong-one"])
def test_a_wrong_password_is_refused_and_not_shown(locked_redis: RedisServer, password: str | None) -> None:
    secret = None if password is None else SecretStr(password)
    store = RedisStore(RedisSettings(url=SecretStr(locked_redis.url), password=secret))
    with pytest.raises(AuthenticationFailed) as caught:
        store.partitions()
    assert "check redis.username and redis.password" in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    store.close()


def test_the_right_password_opens_from_settings_url_and_file(locked_redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("right\n")
    for settings in (
        RedisSettings(url=SecretStr(locked_redis.url), password=SecretStr("right")),
        RedisSettings(url=SecretStr(locked_redis.url), password_file=tmp_path / "password"),
        RedisSettings(url=SecretStr(locked_redis.url.replace("//", "//:right@"))),
    ):
        store = RedisStore(settings)
        assert store.partitions() is None
        store.close()


def test_a_user_who_may_only_read_is_told_so(locked_redis: RedisServer) -> None:
    settings = RedisSettings(url=SecretStr(locked_redis.url), username="reader", password=SecretStr("reads"))
    store = RedisStore(settings)
    assert store.partitions() is None
    with pytest.raises(AuthenticationFailed, match="refuses these credentials"):
        store.set_partitions(8)
    store.close()


def test_of_two_workers_racing_for_a_watermark_exactly_one_wins_each_round(redis_server: RedisServer) -> None:
    rounds = 200
    settings = RedisSettings(url=SecretStr(redis_server.url))
    start = threading.Barrier(2)
    results: dict[str, list[SwapResult]] = {"a": [], "b": []}

    def race(worker: str) -> None:
        store = RedisStore(settings)
        for number in range(rounds):
            written = UserRow(worker.encode(), b"", b"", worker, number)
            start.wait(timeout=30)
            (result,) = store.swap([swap(0, number - 1 if number else None, number, {"u": written}, {CLICKS: number})])
            results[worker].append(result)
        store.close()

    threads = [threading.Thread(target=race, args=(worker,), daemon=True) for worker in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results["a"]) == len(results["b"]) == rounds
    for number, (a, b) in enumerate(zip(results["a"], results["b"], strict=True)):
        assert a.swapped != b.swapped, f"round {number}: {a}, {b}"
        assert a.offset == b.offset == number
    store = RedisStore(settings)
    last_winner = b"a" if results["a"][-1].swapped else b"b"
    assert store.read_rows({0: ["u"]})[0].rows[0].vector == last_winner
    store.close()


def test_a_reading_is_of_one_moment(redis_server: RedisServer) -> None:
    """Rows and watermark of a reading belong together, whatever a writer does meanwhile."""
    settings = RedisSettings(url=SecretStr(redis_server.url))
    users = [f"u{number}" for number in range(64)]
    done = threading.Event()

    def write() -> None:
        store = RedisStore(settings)
        for number in range(300):
            written = UserRow(str(number).encode(), b"", b"", "m", number)
            store.swap([swap(0, number - 1 if number else None, number, dict.fromkeys(users, written))])
        store.close()
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    store = RedisStore(settings)
    readings = 0
    while not done.is_set() or not readings:
        reading = store.read_rows({0: users})[0]
        expected = None if reading.offset is None else str(reading.offset).encode()
        assert {found.vector for found in reading.rows} == {expected}
        readings += 1
    writer.join(timeout=30)
    store.close()
    assert readings > 1
