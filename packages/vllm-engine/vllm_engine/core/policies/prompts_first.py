"""First come, first served, and a burst of prompts before the next tokens of those who have their first one."""

import math
import time
from collections.abc import Callable, Sequence

from vllm_engine.core.policies.policy import Policy, StepRules, Waiting
from vllm_engine.core.policies.waiting import OrderKey
from vllm_engine.core.request import Request

CHEAP_STEP_SECONDS = 3e-3
"""Where the shortest step takes no longer, a step costs little besides its tokens, and two are as good as one."""
MOST_SECONDS_BACK = 0.05
"""How long streams stand still for prompts at most, but for what is left of a step then."""
_PAID_BACK = 0.5
"""Part of the time without anybody standing back that is taken off: at most a third of all time is prompts' alone."""
_FORGETTING = 1.02
"""What the shortest step grows by with each that is longer, so that one of long ago does not count for ever."""


class PromptsFirst(Policy):
    """An order, and with streams, requests that generate let short steps go by while prompts wait that can start.

    Many prompts that come at once are taken in one after the other, so the first ones have their first token while the
    last ones wait. Each token that is computed beside prompts then holds up those prompts, the frontend that hands it
    on and the client that reads it, which may all share the same few cores. It comes a moment later as well.

    Where a step is long however little is in it, as with weights that take long to read, whoever generates rides along
    as ever: a step more would cost more than it gives.
    """

    def __init__(self, order: OrderKey, waiting: Waiting, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            order: sort key of the running requests; the last one is preempted first.
            waiting: is empty, and goes by the same order.
            clock: seconds that only grow.
        """
        super().__init__(order, waiting)
        self._clock = clock
        self._streams = False
        self._began = self._ended = clock()
        self._shortest_step = math.inf
        self._stands_back = False
        self._seconds_back = 0.0  # that are not paid back

    def expect_streams(self) -> None:
        self._streams = True

    def begin_step(
        self, running: list[Request], could_start: Callable[[Request], bool], preempt: Callable[[Request], None]
    ) -> StepRules:
        now = self._clock()
        if self._stands_back:
            self._seconds_back += (self._ended if self._ended >= self._began else now) - self._began
        else:
            self._seconds_back = max(0.0, self._seconds_back - _PAID_BACK * (now - self._began))
        self._began = now
        self._stands_back = (
            self._streams
            and self._shortest_step <= CHEAP_STEP_SECONDS
            and self._seconds_back < MOST_SECONDS_BACK
            and self._holds_up_prompts(running, could_start)
        )
        rules = StepRules()
        if self._stands_back:
            rules.stands_back = _everybody
        return rules

    def end_step(self, seconds: float) -> None:
        self._ended = self._clock()  # after the last step nothing may come for long
        self._shortest_step = min(seconds, _FORGETTING * self._shortest_step)

    def _holds_up_prompts(self, running: Sequence[Request], could_start: Callable[[Request], bool]) -> bool:
        """Whether a prompt can start, and would find somebody in its step who generates."""
        request = self.first()
        return request is not None and not all(one.is_prefilling for one in running) and could_start(request)


def _everybody(request: Request) -> bool:
    return True
