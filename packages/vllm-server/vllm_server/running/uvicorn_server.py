"""uvicorn, run from our own event loop and with our own signals."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from vllm_engine.logging import logging_in_force
from vllm_server.config import ServerConfig
from vllm_server.running.access_log import filter_access_log
from vllm_server.running.http_bounds import bounded_protocol

FORCED_END_AFTER = 5
"""Seconds after the time for running requests in which they must have taken their abortion."""


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: ``lifecycle`` decides when it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def create_server(
    app: ASGIApp, config: ServerConfig, shutdown_timeout: float = 0.0, tls: ssl.SSLContext | None = None
) -> Server:
    """A server for ``app``; ``await server.serve(sockets=[...])`` runs it.

    Args:
        app: the application.
        config: how it listens and logs.
        shutdown_timeout: seconds that running requests get when the server is told to stop.
        tls: what wraps the connections; without it they are plain.
    """
    _share_log_handlers()
    filter_access_log(config.disable_access_log_for_endpoints or (), config.root_path)
    settings = uvicorn.Config(
        app,
        loop="none",
        http=bounded_protocol(config.h11_max_incomplete_event_size, config.h11_max_header_count),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=_level(config),
        access_log=not config.disable_uvicorn_access_log,
        server_header=False,
        timeout_graceful_shutdown=round(shutdown_timeout) + FORCED_END_AFTER,
    )
    settings.load()
    settings.ssl = tls  # uvicorn would make one of its own from the names of files
    return Server(settings)


def _level(config: ServerConfig) -> str | None:
    """The lowest level that uvicorn logs; a configuration of the operator has its own, unless a flag says more."""
    default = config.uvicorn_log_level == ServerConfig.uvicorn_log_level
    return None if logging_in_force() is not None and default else config.uvicorn_log_level


def _share_log_handlers() -> None:
    """uvicorn's log lines look like ours, unless a configuration of the operator decides how they look."""
    if logging_in_force() is not None:
        return
    ours = logging.getLogger("vllm_server")
    theirs = logging.getLogger("uvicorn")
    theirs.handlers[:] = ours.handlers
    theirs.propagate = ours.propagate
