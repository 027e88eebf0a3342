"""Whether a core makes progress: it sends something, it answers a ping, or it computes."""

import time
from collections.abc import Callable

LOOK_SECONDS = 0.5
"""How often ``Pulse.look`` wants to be called."""
PING_SECONDS = 1.0
"""Silence after which the core is asked for a sign of life. So an idle core is woken less than once a second."""
STALL_SECONDS = 3.0
"""How long a core may be silent and use no processor time before it counts as stalled."""
LONGEST_STEP_SECONDS = 300.0
"""How long it may be silent although it computes: a large model takes a minute for a step full of prompts."""
COMPUTING_SHARE = 0.02
"""Part of one processor that a core uses when it computes. To take pings in costs a thousandth of that."""


class Pulse:
    """The progress of one core, as seen by who holds it.

    Messages are progress. In the midst of a long step there are none: then processor time that the core uses shows
    that it computes and is neither stopped nor waiting for something that does not come.
    """

    def __init__(
        self,
        ping: Callable[[], None],
        cpu_seconds: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
        *,
        stall_seconds: float = STALL_SECONDS,
        longest_seconds: float = LONGEST_STEP_SECONDS,
        has_other_work: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            ping: asks the core for a message.
            cpu_seconds: processor time that the core has used so far; None where the system does not tell, and then
                a silent core counts as computing.
            clock: seconds.
            stall_seconds: how long it may be silent and use no processor time.
            longest_seconds: how long it may be silent although it computes.
            has_other_work: whether it does something else than steps now, such as reading weights: then it may be
                silent for as long as it computes.
        """
        self._has_other_work = has_other_work
        self._stall_seconds = stall_seconds
        self._longest_seconds = longest_seconds
        self._ping = ping
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._heard = False
        self._pinged = False
        self._silent = 0.0  # seconds without a message
        self._idle = 0.0  # those of them, up to now, without computing
        self._last_look = clock()
        self._last_cpu = cpu_seconds()

    @property
    def stalled(self) -> bool:
        """Whether the core makes no progress."""
        return not self._heard and (
            (self._silent >= self._stall_seconds and self._idle >= self._stall_seconds)
            or (self._silent >= self._longest_seconds and not self._has_other_work())
        )

    @property
    def silent_seconds(self) -> float:
        """For how long the core has sent nothing, to ``LOOK_SECONDS``."""
        return 0.0 if self._heard else self._silent

    def heard(self) -> None:
        """A message of the core has come."""
        self._heard = True
        self._pinged = False

    def look(self) -> None:
        """Take in what happened since the last look.

        A pause of this process is no silence of the core, whose messages wait meanwhile: a look counts little more
        than its time.
        """
        now, cpu = self._clock(), self._cpu_seconds()
        elapsed = now - self._last_look
        computes = cpu is None or self._last_cpu is None or cpu - self._last_cpu >= COMPUTING_SHARE * elapsed
        self._last_look, self._last_cpu = now, cpu
        if self._heard:
            self._heard = False
            self._silent = self._idle = 0.0
            return
        counted = min(elapsed, 2 * LOOK_SECONDS)
        self._silent += counted
        self._idle = 0.0 if computes else self._idle + counted
        if self._silent >= PING_SECONDS and not self._pinged:
            self._pinged = True
            self._ping()
