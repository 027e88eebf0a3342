"""Compiled kernels of a GPU: kept from one start to the next, and counted."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from vllm_engine import envs
from vllm_engine.logging import get_logger

logger = get_logger(__name__)


class KernelCache:
    """Keeps what Triton compiles, and tells how much a start compiled: nothing, if it is not the first of its kind.

    On a CPU, where nothing is compiled, it does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        """Before the first kernel is called."""
        self._counted = None
        if device.type != "cuda" or find_spec("triton") is None:
            return
        from vllm_kernels.triton import compilations

        try:
            folder = compilations.keep_in(cache_root() / "triton")
            logger.debug("compiled kernels are kept in %s", folder)
        except OSError as error:
            logger.warning("compiled kernels are kept where Triton's default is: %s", error)
        self._counted = compilations.Compilations()
        self._counted.start()

    def started(self) -> None:
        """All that a start computes was computed. From now on, each compilation is one that a request waits for."""
        if self._counted is None or self._counted.tell is not None:
            return
        compiled, found, seconds = self._counted.compiled, self._counted.from_cache, self._counted.seconds
        logger.info("compiled %d kernels, %d from the cache in %.1f s", compiled, found, seconds)
        self._counted.tell = _tell_late

    def close(self) -> None:
        """Count no more."""
        if self._counted is not None:
            self._counted.stop()


def cache_root() -> Path:
    """The folder of what is kept from one start to the next: ``VLLM_CACHE_ROOT``, or one among the user's caches."""
    named: str | None = envs.get("VLLM_CACHE_ROOT")
    if named is not None:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm"


def _tell_late(name: str, seconds: float) -> None:
    logger.warning("compiled %s in %.1f s, for a shape that was not met at start: requests waited", name, seconds)
