"""The metrics of a program that has no HTTP server of its own."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)


@contextmanager
def metrics_server(host: str, port: int, registry: CollectorRegistry) -> Iterator[int]:
    """Serve the metrics of ``registry`` in a thread; gives the port.

    Raises:
        ConfigError: naming ``url`` or ``port`` when the address cannot be had.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        no_such_host = isinstance(error, (UnicodeError, socket.gaierror)) or error.errno == errno.EADDRNOTAVAIL
        field = "url" if no_such_host else "port"
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{field}: cannot serve metrics at {host} port {port}: {reason}", field=field) from error
    logger.info("metrics at %s port %d", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
