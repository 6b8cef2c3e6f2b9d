"""The small HTTP server of a service: `/livez`, `/readyz` and `/metrics`."""

import errno
import json
import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streams.errors import PortInUse, SettingsError
from streams.observe.health import Health, Verdict

_log = logging.getLogger(__name__)

_PATHS: Final = ("/livez", "/readyz", "/metrics")
_READ_TIMEOUT_S: Final = 5.0


class HttpServer:
    """Answers on one port from threads of its own until `stop`; a context manager does the same.

    Args:
        host: The address to listen on. Nothing here is secret, but nothing asks who calls either.
        port: The port; None takes `default_port`, or a free one if that is taken.
        default_port: The port of this kind of service.
        health: Asked at `/livez` and `/readyz`.
        registry: Read at `/metrics`.

    Raises:
        PortInUse: `port` was given and is taken, or needs rights that the process has not.
        SettingsError: `host` is no address of this machine.
    """

    def __init__(
        self, host: str, port: int | None, *, default_port: int, health: Health, registry: CollectorRegistry
    ) -> None:
        self._server = _bind(host, port, default_port, health, registry)
        self._thread = threading.Thread(
            # The default of half a second is how long a stop would take.
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="observe-http",
            # The process ends when its loop does, whoever still asks how it is.
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        host = str(self._server.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def stop(self) -> None:
        """Stop answering, close every connection and wait until each thread has ended. A second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_http(
    host: str, port: int | None, *, default_port: int, health: Health, registry: CollectorRegistry
) -> HttpServer | None:
    """Start the server that the settings ask for: none if `port` is 0. Arguments and errors as for `HttpServer`."""
    if port == 0:
        return None
    return HttpServer(host, port, default_port=default_port, health=health, registry=registry)


class _Server(ThreadingHTTPServer):
    """A server that knows its open connections, so that a silent client cannot hold up `stop`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], health: Health, registry: CollectorRegistry) -> None:
        self.health = health
        self.registry = registry
        self._open: dict[threading.Thread, socket.socket] = {}
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks its name up in DNS (socket.getfqdn), which can take seconds and is not used here.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._open[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.pop(threading.current_thread(), None)

    def hang_up(self) -> None:
        for thread, connection in list(self._open.items()):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                _log.debug("the client had hung up already")
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the signature is the base's
        # The base class prints to stderr past the log; most often the client went away while it was answered.
        _log.warning("no answer to %s", client_address[0], exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so the connection closes after the answer."""

    server: _Server
    timeout = _READ_TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            status, body = HTTPStatus.OK, encode(self.server.registry)
        else:
            content_type = "application/json"
            if path == "/livez":
                status, body = _verdict(self.server.health.live())
            elif path == "/readyz":
                status, body = _verdict(self.server.health.ready())
            else:
                status, body = HTTPStatus.NOT_FOUND, json.dumps({"status": "not found", "paths": _PATHS}).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def version_string(self) -> str:
        return "driftline"  # the default names the version of Python

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        _log.debug(format, *args)


def _verdict(verdict: Verdict) -> tuple[HTTPStatus, bytes]:
    status = HTTPStatus.OK if verdict.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return status, json.dumps({"status": "ok" if verdict.ok else "failing", "reasons": verdict.reasons}).encode()


def _bind(host: str, port: int | None, default_port: int, health: Health, registry: CollectorRegistry) -> _Server:
    wanted = default_port if port is None else port
    try:
        return _Server((host, wanted), health, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port is None:
            server = _Server((host, 0), health, registry)
            _log.warning("port %d is taken, so /metrics is on port %d", wanted, server.server_address[1])
            return server
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"http.port: {wanted} on {host} is taken by another process. Set DRIFTLINE_HTTP__PORT to a free port, "
                "or to 0 to do without"
            ) from error
        if error.errno == errno.EACCES:
            raise PortInUse(
                f"http.port: {wanted} on {host} may not be opened by this process. Set DRIFTLINE_HTTP__PORT to a port "
                "above 1023"
            ) from error
        raise SettingsError(
            f"http.host: {host!r} is no address of this machine: {error.strerror}. Set DRIFTLINE_HTTP__HOST to "
            "127.0.0.1, or to 0.0.0.0 for every interface"
        ) from error
