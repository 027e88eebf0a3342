"""``Pacing``: tokens of two steps at a time, where handing out those of each would take a good part of a core."""

import time
from collections.abc import Callable

BUSY, IDLE = 0.36, 0.18
"""Shares of the time in which the event loop computes: above the one outputs wait for those of the next step, below the
other they do no more. Handing out two steps together takes little more than half of the time, so they are apart.
"""
WINDOW_SECONDS = 0.05
"""The share is taken over so much time."""
LONGEST_WAIT = 0.01
"""Seconds that tokens may wait for those of the next step. Slower steps are handed out each by itself."""


class Pacing:
    """Says how long the outputs of a step may wait for those of the next.

    With many streams and a fast model, what a token costs on its way out (an event, a write, a client that wakes up) is
    more than what it costs in the engine, and is mostly the same for two. Nobody reads a hundred tokens a second one by
    one. First tokens and ends are not to wait: that is the caller's to see to.

    Args:
        clock: seconds that only grow.
        computed: seconds that this thread has computed.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, computed: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._computed = computed
        self._since, self._computed_before = clock(), computed()
        self._busy = False
        self._last_step = 0.0
        self._interval = LONGEST_WAIT

    def patience(self, timestamp: float) -> float:
        """Seconds that the outputs of a step may wait; 0 where they are to be handed out now.

        Args:
            timestamp: when the step ended, in seconds of the core's clock.
        """
        self._interval, self._last_step = timestamp - self._last_step, timestamp
        now = self._clock()
        if now - self._since >= WINDOW_SECONDS:
            computed = self._computed()
            share = (computed - self._computed_before) / (now - self._since)
            self._busy = share > (IDLE if self._busy else BUSY)
            self._since, self._computed_before = now, computed
        return 2 * self._interval if self._busy and 0 < 2 * self._interval <= LONGEST_WAIT else 0.0
