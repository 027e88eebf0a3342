"""The line in the log that says how large the batches are, for those who set ``VLLM_LOG_BATCHSIZE_INTERVAL``."""

import time
from collections import Counter
from collections.abc import Callable

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

MOST_SIZES = 20
"""Sizes that one line names: the most frequent ones."""


class BatchSizeLog:
    """Counts steps by the tokens that they computed, and logs the counts when the first step after an interval ends."""

    def __init__(self, interval: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._since = clock()
        self._steps: Counter[int] = Counter()

    def on_step(self, num_tokens: int) -> None:
        """Count a step of ``num_tokens``, and write the line when it is time."""
        self._steps[num_tokens] += 1
        now = self._clock()
        if now - self._since < self._interval:
            return
        counts = sorted(self._steps.items(), key=lambda item: (-item[1], item[0]))
        logger.info(
            "batch sizes of %d steps in %.1f s, as tokens x steps: %s%s",
            self._steps.total(),
            now - self._since,
            ", ".join(f"{size} x {steps}" for size, steps in counts[:MOST_SIZES]),
            ", ..." if len(counts) > MOST_SIZES else "",
        )
        self._since = now
        self._steps.clear()
