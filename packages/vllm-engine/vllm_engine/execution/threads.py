"""How many threads compute a step, and how they wait for each other. Figures: docs/benchmarks.md."""

import os
import sys

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

SPIN_COUNT = 1000
"""Rounds (some microseconds) that an idle OpenMP thread spins before it sleeps."""
LAYER_BYTES_PER_THREAD = 4 * 2**20
"""Weights of a layer that keep one thread busy for long enough to be worth waking."""


def limit_spinning() -> None:
    """Make OpenMP's idle threads go to sleep soon, unless the user has said how they should wait.

    A spinning thread keeps its core from the thread that it waits for as soon as anything else runs on the machine: a
    step then takes ten times as long. One that sleeps at once is woken too late on a quiet machine. OpenMP reads this
    when it is loaded, so there is nothing to be done when torch is there already.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if "torch" in sys.modules:
        logger.debug("torch is loaded already: its threads wait as they were told before")
        return
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def num_threads(layer_bytes: int, cores: int) -> int:
    """Threads for a model with ``layer_bytes`` of weights in a layer on ``cores`` usable cores.

    A small layer is done sooner by one thread than by several that wait for each other.
    """
    return max(1, min(cores, layer_bytes // LAYER_BYTES_PER_THREAD))
