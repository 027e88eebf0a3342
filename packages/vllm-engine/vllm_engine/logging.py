"""Logging of the engine: one logger tree named ``vllm``, configured only by programs, never by ``import``."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_engine import envs

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"


def get_logger(name: str) -> logging.Logger:
    """Logger for a module: ``get_logger(__name__)``."""
    return logging.getLogger(name)


def configure_logging(level: str | None = None) -> None:
    """Send the log of all five wheels to stderr, at ``level`` or ``VLLM_LOGGING_LEVEL``.

    Called by programs (the server, the command line, the engine process). A library user who configures
    ``logging`` keeps their own set-up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%m-%d %H:%M:%S"))
    chosen = (level or envs.get("VLLM_LOGGING_LEVEL")).upper()
    for tree in ("vllm_kernels", "vllm_engine", "vllm_server", "vllm_cli", "vllm_bench"):
        logger = logging.getLogger(tree)
        logger.handlers[:] = [handler]
        logger.setLevel(chosen)
        logger.propagate = False


@contextmanager
def startup_phase(logger: logging.Logger, name: str, phases: dict[str, float]) -> Iterator[None]:
    """Time one named phase of start-up: one log line with its seconds, kept in ``phases[name]``."""
    start = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - start
    logger.info("start-up: %s took %.2f s", name, phases[name])
