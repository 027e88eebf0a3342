"""How long KV blocks live and how often they are used again, of a sample of them (``--kv-cache-metrics``)."""

import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from vllm_engine.messages import KVResidency
from vllm_engine.metrics.histogram import Histogram

MOST_GAPS = 4
"""Gaps between uses that are kept of a block: the last ones, as a block of a system prompt has thousands."""


class BlockResidency:
    """Told by the pool what becomes of blocks. A block is followed from ``allocated`` to ``evicted``, or forgotten.

    A block whose content was never named for the prefix cache is not evicted when it goes back, so it counts nothing.
    """

    def __init__(
        self,
        sample: float,
        bounds: Sequence[float],
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            sample: share of blocks to follow, above 0 and at most 1.
            bounds: of the histograms, in seconds.
            clock: seconds.
            draw: a number from 0 to below 1, at random.
        """
        self._sample = sample
        self._clock = clock
        self._draw = draw
        self._followed: dict[int, tuple[float, list[float]]] = {}  # when allocated, and when used since
        self._lifetime = Histogram(bounds)
        self._idle = Histogram(bounds)
        self._reuse_gap = Histogram(bounds)

    def allocated(self, block: int) -> None:
        """A block gets new content."""
        self._followed.pop(block, None)
        if self._sample >= 1 or self._draw() < self._sample:
            self._followed[block] = (self._clock(), [])

    def used(self, block: int) -> None:
        """A request begins with a block that was there."""
        entry = self._followed.get(block)
        if entry is not None:
            entry[1].append(self._clock())
            del entry[1][: -MOST_GAPS - 1]

    def evicted(self, block: int) -> None:
        """A block's content made room for other content."""
        entry = self._followed.pop(block, None)
        if entry is None:
            return
        now = self._clock()
        born, uses = entry
        self._lifetime.observe(now - born)
        self._idle.observe(now - (uses[-1] if uses else born))
        moments = uses if len(uses) > MOST_GAPS else [born, *uses]
        self._reuse_gap.observe_all(after - before for before, after in pairwise(moments))

    def forget_all(self) -> None:
        """The prefix cache was emptied, which is no eviction."""
        self._followed.clear()

    def counts(self) -> KVResidency:
        """What was counted until now."""
        return KVResidency(self._lifetime.counts(), self._idle.counts(), self._reuse_gap.counts())
