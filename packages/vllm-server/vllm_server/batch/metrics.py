"""The metrics of a program that has no HTTP server of its own."""

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_server.telemetry.registry import Registry
from vllm_server.telemetry.snapshot import TEXT_FORMAT

logger = get_logger(__name__)


@contextmanager
def metrics_server(host: str, port: int, registry: Registry) -> Iterator[int]:
    """Serve the metrics of ``registry`` in a thread, at every path; gives the port.

    Raises:
        ConfigError: naming ``url`` or ``port`` when the address cannot be had.
    """
    try:
        server = _server(host, port, registry)
    except (OSError, UnicodeError) as error:
        no_such_host = isinstance(error, (UnicodeError, socket.gaierror)) or error.errno == errno.EADDRNOTAVAIL
        field = "url" if no_such_host else "port"
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{field}: cannot serve metrics at {host} port {port}: {reason}", field=field) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    logger.info("metrics at %s port %d", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _server(host: str, port: int, registry: Registry) -> ThreadingHTTPServer:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(ThreadingHTTPServer):
        address_family = family
        daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a silent client holds a thread

        def do_GET(self) -> None:
            page = registry.page()
            self.send_response(200)
            self.send_header("Content-Type", TEXT_FORMAT)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are no news."""

    return Server((str(address[0]), port), Handler)
