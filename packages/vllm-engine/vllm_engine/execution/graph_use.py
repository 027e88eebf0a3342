"""The line in the log that says how steps were run, for those who set ``cudagraph_metrics``."""

import time
from collections import Counter
from collections.abc import Callable

from vllm_engine.logging import get_logger

logger = get_logger(__name__)

SECONDS = 10.0
"""Between two lines, at least; as between those of the engine's statistics."""
MOST_SIZES = 10
"""Sizes that one line names: the most frequent ones."""


class GraphUse:
    """Counts steps by what they were run as, and logs the counts when the first step after an interval comes.

    Args:
        logs: whether there are lines; without, nothing is counted.
        clock: of seconds; another one in tests.
    """

    def __init__(self, logs: bool = False, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._logs = logs
        self._clock = clock
        self._since = clock()
        self._steps: Counter[tuple[str, int]] = Counter()
        self._num_tokens = self._num_padded = 0

    def count(self, kind: str, num_tokens: int, size: int) -> None:
        """A step of ``num_tokens`` is run as ``FULL``, ``PIECEWISE`` or ``NONE``, padded up to ``size``."""
        if not self._logs:
            return
        self._steps[kind, size] += 1
        self._num_tokens += num_tokens
        self._num_padded += size - num_tokens
        now = self._clock()
        if now - self._since >= SECONDS:
            self._log(now - self._since)
            self._since = now
            self._steps.clear()
            self._num_tokens = self._num_padded = 0

    def _log(self, seconds: float) -> None:
        of_kind: Counter[str] = Counter()
        for (kind, _), steps in self._steps.items():
            of_kind[kind] += steps
        sizes = sorted(self._steps.items(), key=lambda item: (-item[1], item[0]))
        logger.info(
            "graphs of %d steps in %.1f s: %d FULL, %d PIECEWISE, %d NONE; %d tokens and %d of padding; "
            "as size x steps: %s%s",
            self._steps.total(),
            seconds,
            *(of_kind[kind] for kind in ("FULL", "PIECEWISE", "NONE")),
            self._num_tokens,
            self._num_padded,
            ", ".join(f"{kind} {size} x {steps}" for (kind, size), steps in sizes[:MOST_SIZES]),
            ", ..." if len(sizes) > MOST_SIZES else "",
        )
