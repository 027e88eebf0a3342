"""How the threads of a step wait for each other. To be settled before torch, and with it OpenMP, is loaded."""

import os
import sys

from vllm_engine.logging import get_logger

logger = get_logger(__name__)


def let_waiting_threads_sleep() -> None:
    """Make OpenMP's idle threads sleep instead of spin, unless the user has said how they should wait.

    A spinning thread keeps its core from the thread that it waits for as soon as anything else runs on the machine:
    with two threads and two other busy processes, a step of the demo model took 283 ms spinning and 23 ms sleeping.
    OpenMP reads this once, so there is nothing to be done when torch is loaded already.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if "torch" in sys.modules:
        logger.debug("torch is loaded already: its threads wait as they were told before")
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
