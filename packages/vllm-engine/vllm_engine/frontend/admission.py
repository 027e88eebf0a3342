"""The bounded queue: how many requests, and tokens of prompts, may wait before new ones are turned away."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from vllm_engine.config import SchedulerConfig
from vllm_engine.errors import Overloaded
from vllm_engine.messages import EngineRequest, RequestUpdate

_RATE_OVER = 64
"""Ended requests over which their rate is taken."""
MAX_RETRY_SECONDS = 60.0


class Admission:
    """Counts what the engine has to do, and refuses what would wait behind too much.

    Requests are counted from ``take`` to ``leave``: as many as run at once, and ``max_num_queued_reqs`` more, are
    taken. The tokens of a prompt count as queued until the first update of its request; they are taken whatever their
    number when no others are queued, so that there is no prompt that never is.
    """

    def __init__(
        self, config: SchedulerConfig, max_num_seqs: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A limit of 0 in ``config`` is none. ``max_num_seqs`` requests run at once."""
        self._max_requests = max_num_seqs + config.max_num_queued_reqs if config.max_num_queued_reqs else None
        self._max_tokens = config.max_num_queued_tokens or None
        self._clock = clock
        self._queued: dict[str, int] = {}  # tokens of prompts, by id in the engine
        self._ended: deque[float] = deque(maxlen=_RATE_OVER)
        self.num_requests = 0
        self.num_queued_tokens = 0
        self.num_rejected = {"max_num_queued_reqs": 0, "max_num_queued_tokens": 0}
        """Refusals by the limit that was reached."""

    def take(self, count: int) -> None:
        """Count ``count`` more requests. Raises ``Overloaded`` when they are too many, and counts none of them."""
        if self._max_requests is not None and self.num_requests + count > self._max_requests:
            self.num_rejected["max_num_queued_reqs"] += 1
            raise Overloaded(
                f"The engine is overloaded: {self.num_requests} requests run or wait, and it takes "
                f"{self._max_requests} (max_num_queued_reqs).",
                retry_after=self._retry_after(),
            )
        self.num_requests += count

    def enqueue(self, requests: Sequence[EngineRequest]) -> None:
        """Count the prompts of requests. Raises ``Overloaded`` when they are too long, and counts none of them."""
        count = sum(len(request.prompt_token_ids) for request in requests)
        if self._max_tokens is not None and self._queued and self.num_queued_tokens + count > self._max_tokens:
            self.num_rejected["max_num_queued_tokens"] += 1
            raise Overloaded(
                f"The engine is overloaded: prompts of {self.num_queued_tokens} tokens wait, and no more than "
                f"{self._max_tokens} may (max_num_queued_tokens).",
                retry_after=self._retry_after(),
            )
        for request in requests:
            self._queued[request.request_id] = len(request.prompt_token_ids)
        self.num_queued_tokens += count

    def on_updates(self, updates: Iterable[RequestUpdate]) -> None:
        """What a step brought: who got something waits no more."""
        for update in updates:
            self.num_queued_tokens -= self._queued.pop(update.request_id, 0)

    def leave(self, count: int, requests: Iterable[EngineRequest]) -> None:
        """``count`` requests have ended, in whatever way; ``requests`` are those of them that were enqueued."""
        now = self._clock()
        for request in requests:
            self.num_queued_tokens -= self._queued.pop(request.request_id, 0)
            self._ended.append(now)
        self.num_requests -= count

    def _retry_after(self) -> float:
        """Seconds in which half of what runs and waits will have ended, at the pace of the last ones."""
        if len(self._ended) < 2 or self._ended[-1] == self._ended[0]:
            return 1.0
        pace = (len(self._ended) - 1) / (self._clock() - self._ended[0])
        return min(max(self.num_requests / 2 / pace, 1.0), MAX_RETRY_SECONDS)
