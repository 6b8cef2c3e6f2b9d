from pathlib import Path

import pytest

from export.pooling import write_pooling_bundle
from streams.errors import SettingsError
from streams.services.doctor import Check, _check_memory, _check_model, _check_persistence, _check_server, diagnose
from streams.settings import Settings
from streams.store.redis import ServerFacts


def facts(
    version: str = "7.0.15",
    role: str = "master",
    *,
    is_cluster: bool = False,
    max_memory: int = 0,
    eviction: str = "noeviction",
    append_only: bool = False,
    snapshots: bool | None = False,
) -> ServerFacts:
    return ServerFacts(version, role, is_cluster, max_memory, eviction, append_only, snapshots)


@pytest.mark.parametrize(
    ("server", "verdict"),
    [
        (facts("6.2.0"), "ok"),
        (facts("10.1.2"), "ok"),
        (facts("6.0.16"), "failed"),
        (facts("5.9.9"), "failed"),
        (facts(role="slave"), "failed"),
        (facts(is_cluster=True), "failed"),
    ],
)
def test_the_server_must_be_a_primary_of_6_2_or_newer(server: ServerFacts, verdict: str) -> None:
    assert _check_server(Settings(), server).verdict == verdict


@pytest.mark.parametrize(
    ("eviction", "max_memory", "verdict"),
    [
        ("noeviction", 0, "ok"),
        ("noeviction", 10**9, "ok"),
        ("volatile-ttl", 0, "ok"),
        ("volatile-lru", 10**9, "warning"),
        ("allkeys-lru", 10**9, "failed"),
        ("allkeys-random", 0, "failed"),
    ],
)
def test_a_policy_that_may_evict_a_watermark_fails(eviction: str, max_memory: int, verdict: str) -> None:
    assert _check_memory(facts(eviction=eviction, max_memory=max_memory)).verdict == verdict


@pytest.mark.parametrize(
    ("server", "verdict"),
    [
        (facts(append_only=True, snapshots=None), "ok"),
        (facts(snapshots=True), "ok"),
        (facts(snapshots=False), "warning"),
        (facts(snapshots=None), "warning"),
    ],
)
def test_a_redis_that_keeps_nothing_is_worth_a_warning(server: ServerFacts, verdict: str) -> None:
    assert _check_persistence(server).verdict == verdict


def test_settings_that_cannot_be_read_fail_and_everything_else_is_named_as_not_looked_at() -> None:
    def load() -> Settings:
        raise SettingsError("driftline.toml: there is no section [kafak]")

    diagnosis = diagnose(load)
    assert not diagnosis.ok
    assert diagnosis.checks[0].verdict == "failed"
    assert "kafak" in diagnosis.checks[0].found
    assert {check.verdict for check in diagnosis.checks[1:]} == {"skipped"}
    assert len(diagnosis.checks) == 8


def checks_of(settings: dict[str, object]) -> dict[str, Check]:
    return {check.name: check for check in _check_model(Settings.model_validate({"model": settings}))}


def test_a_damaged_bundle_fails_and_the_file_is_named(tmp_path: Path) -> None:
    bundle = write_pooling_bundle(tmp_path / "bundle", ["a", "b"], dim=4)
    encoder = bundle.path / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    checks = checks_of({"bundle": bundle.path})
    assert (checks["bundle"].verdict, checks["provider"].verdict) == ("failed", "skipped")
    assert "encoder.onnx" in checks["bundle"].found


def test_the_provider_is_the_one_that_the_session_got(tmp_path: Path) -> None:
    bundle = write_pooling_bundle(tmp_path / "bundle", ["a", "b"], dim=4)
    checks = checks_of({"bundle": bundle.path, "provider": "cpu"})
    assert (checks["bundle"].verdict, checks["provider"].verdict) == ("ok", "ok")
    assert "asked for cpu, the session got CPUExecutionProvider" in checks["provider"].found
