import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from streams.errors import PortInUse, SettingsError
from streams.observe.health import Health
from streams.observe.http import HttpServer, serve_http

HOST = "127.0.0.1"


@pytest.fixture
def health() -> Health:
    return Health(stall_s=30)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def server(health: Health, registry: CollectorRegistry) -> Iterator[HttpServer]:
    with HttpServer(HOST, None, default_port=free_port(), health=health, registry=registry) as server:
        yield server


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def ask(server: HttpServer, path: str, *, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(HOST, server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_readyz_says_no_with_every_reason_and_then_yes(server: HttpServer, health: Health) -> None:
    health.block("store", 'Redis says "no"')
    response, body = ask(server, "/readyz")
    assert response.status == 503
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"status": "failing", "reasons": ["starting", 'Redis says "no"']}
    health.started()
    health.unblock("store")
    response, body = ask(server, "/readyz?verbose")
    assert (response.status, json.loads(body)) == (200, {"status": "ok", "reasons": []})


def test_livez_says_no_when_the_loop_is_stuck(registry: CollectorRegistry) -> None:
    times = iter([0.0, 100.0])
    health = Health(stall_s=30, clock=lambda: next(times))
    health.started()
    with HttpServer(HOST, None, default_port=free_port(), health=health, registry=registry) as server:
        assert ask(server, "/livez")[0].status == 200
        health.lag(3)
        response, body = ask(server, "/livez")
    assert response.status == 503
    assert json.loads(body)["reasons"] == ["no progress for 100 s with 3 waiting (allowed: 30 s)"]


def test_metrics_are_those_of_the_registry_in_the_text_format(server: HttpServer, registry: CollectorRegistry) -> None:
    Counter("clicks_total", "Clicks.", registry=registry).inc(3)
    response, body = ask(server, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert b"\nclicks_total 3.0\n" in body
    response, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_another_path_is_not_found_and_the_answer_names_the_paths(server: HttpServer) -> None:
    response, body = ask(server, "/")
    assert response.status == 404
    assert json.loads(body)["paths"] == ["/livez", "/readyz", "/metrics"]


def test_a_head_request_gets_the_status_without_a_body(server: HttpServer) -> None:
    response, body = ask(server, "/readyz", method="HEAD")
    assert (response.status, body) == (503, b"")
    assert int(response.headers["Content-Length"]) > 0


def test_answers_are_not_cached_and_do_not_name_the_version_of_python(server: HttpServer) -> None:
    response, _ = ask(server, "/livez")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Server"] == "driftline"


def test_a_probe_is_answered_while_another_client_says_nothing(server: HttpServer) -> None:
    with socket.create_connection((HOST, server.port)):
        assert ask(server, "/livez")[0].status == 200


def test_stopping_leaves_no_thread_and_no_port_behind_even_with_a_silent_client(
    health: Health, registry: CollectorRegistry
) -> None:
    before = set(threading.enumerate())
    server = HttpServer(HOST, None, default_port=free_port(), health=health, registry=registry)
    ask(server, "/livez")
    with socket.create_connection((HOST, server.port)) as silent:
        silent.sendall(b"GET /livez")
        ask(server, "/livez")  # so the connection before it has been accepted
        server.stop()
        assert set(threading.enumerate()) <= before
    server.stop()
    with socket.create_server((HOST, server.port)):
        pass


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_that_names_it(
    taken: int, health: Health, registry: CollectorRegistry
) -> None:
    with pytest.raises(PortInUse, match=rf"http.port: {taken} on 127.0.0.1 is taken .* DRIFTLINE_HTTP__PORT"):
        serve_http(HOST, taken, default_port=free_port(), health=health, registry=registry)


def test_a_default_port_that_is_taken_gives_way_to_a_free_one_and_the_log_says_which(
    taken: int, health: Health, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with HttpServer(HOST, None, default_port=taken, health=health, registry=registry) as server:
        assert server.port not in (0, taken)
        assert ask(server, "/livez")[0].status == 200
        assert server.url == f"http://127.0.0.1:{server.port}"
    assert caplog.messages == [f"port {taken} is taken, so /metrics is on port {server.port}"]


def test_port_zero_turns_the_server_off(health: Health, registry: CollectorRegistry) -> None:
    before = threading.active_count()
    assert serve_http(HOST, 0, default_port=free_port(), health=health, registry=registry) is None
    assert threading.active_count() == before


def test_the_default_port_is_taken_if_it_is_free(health: Health, registry: CollectorRegistry) -> None:
    port = free_port()
    server = serve_http(HOST, None, default_port=port, health=health, registry=registry)
    assert server is not None
    server.stop()
    assert server.port == port


def test_a_host_that_is_not_this_machine_is_a_settings_error(health: Health, registry: CollectorRegistry) -> None:
    # 192.0.2.0/24 is for documents (RFC 5737): no machine has it.
    with pytest.raises(SettingsError, match=r"http.host: '192.0.2.1' is no address of this machine"):
        serve_http("192.0.2.1", free_port(), default_port=1, health=health, registry=registry)


class Broken(Collector):
    def collect(self) -> Iterator[Metric]:
        raise ValueError("the collector is broken")


def test_a_broken_metric_is_logged_and_the_probes_go_on(
    server: HttpServer,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.register(Broken())
    with pytest.raises((ConnectionError, OSError)):
        ask(server, "/metrics")
    assert ask(server, "/livez")[0].status == 200
    server.stop()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the collector is broken" in caplog.text
    assert capsys.readouterr().err == ""
