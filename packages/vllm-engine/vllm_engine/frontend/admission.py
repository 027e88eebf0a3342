"""The bounded queue: how many requests, and tokens of prompts, may wait before new ones are turned away."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from vllm_engine.config import SchedulerConfig
from vllm_engine.errors import Overloaded
from vllm_engine.frontend.tally import LocalTally, Tally
from vllm_engine.messages import EngineRequest, RequestUpdate

_RATE_OVER = 64
"""Ended requests over which their rate is taken."""
MAX_RETRY_SECONDS = 60.0


class Admission:
    """Counts what the engine has to do, and refuses what would wait behind too much.

    Requests are counted from ``take`` to ``leave``: as many as run at once, and ``max_num_queued_reqs`` more, are
    taken. The tokens of a prompt count as queued until the first update of its request; they are taken whatever their
    number when no others are queued, so that there is no prompt that never is.

    With the policy ``fair``, who floods the queue keeps nobody else out: a tenant with less than an even share of what
    a limit allows is taken though the limit is reached. So ``k`` tenants get past it by ``1/2 + ... + 1/k`` of it.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        max_num_seqs: int,
        *,
        requests: Tally | None = None,
        tokens: Tally | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A limit of 0 in ``config`` is none. ``max_num_seqs`` requests run at once.

        ``requests`` and ``tokens`` count by tenant: those of all processes where several have one engine, and then the
        limits are those of all, too. None counts those of this process alone.
        """
        self._max_requests = max_num_seqs + config.max_num_queued_reqs if config.max_num_queued_reqs else None
        self._max_tokens = config.max_num_queued_tokens or None
        self._clock = clock
        self._fair = config.scheduling_policy == "fair"
        self._queued: dict[str, tuple[str, int]] = {}  # tenant and tokens of the prompt, by id in the engine
        self._requests: Tally = LocalTally() if requests is None else requests
        self._tokens: Tally = LocalTally() if tokens is None else tokens
        self._ended: deque[float] = deque(maxlen=_RATE_OVER)
        self.num_rejected = {"max_num_queued_reqs": 0, "max_num_queued_tokens": 0}
        """Refusals by the limit that was reached."""

    @property
    def num_requests(self) -> int:
        """Requests that run or wait."""
        return self._requests.total

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of the prompts that wait."""
        return self._tokens.total

    def take(self, count: int, tenant: str = "") -> None:
        """Count ``count`` more requests. Raises ``Overloaded`` when they are too many, and counts none of them."""
        if self._is_too_much(self._requests, count, tenant, self._max_requests):
            self.num_rejected["max_num_queued_reqs"] += 1
            raise Overloaded(
                f"The engine is overloaded: {self.num_requests} requests run or wait, and it takes "
                f"{self._max_requests} (max_num_queued_reqs).",
                retry_after=self._retry_after(),
            )
        self._requests.add(tenant, count)

    def enqueue(self, requests: Sequence[EngineRequest]) -> None:
        """Count the prompts of requests. Raises ``Overloaded`` when they are too long, and counts none of them."""
        count = sum(len(request.prompt_token_ids) for request in requests)
        tenant = requests[0].tenant
        if self._tokens.total and self._is_too_much(self._tokens, count, tenant, self._max_tokens):
            self.num_rejected["max_num_queued_tokens"] += 1
            raise Overloaded(
                f"The engine is overloaded: prompts of {self.num_queued_tokens} tokens wait, and no more than "
                f"{self._max_tokens} may (max_num_queued_tokens).",
                retry_after=self._retry_after(),
            )
        for request in requests:
            self._queued[request.request_id] = (tenant, len(request.prompt_token_ids))
        self._tokens.add(tenant, count)

    def on_updates(self, updates: Iterable[RequestUpdate]) -> None:
        """What a step brought: who got something waits no more."""
        if not self._queued:
            return
        for update in updates:
            self._dequeue(update.request_id)

    def leave(self, count: int, requests: Iterable[EngineRequest], tenant: str = "") -> None:
        """``count`` requests have ended, in whatever way; ``requests`` are those of them that were enqueued."""
        now = self._clock()
        for request in requests:
            self._dequeue(request.request_id)
            self._ended.append(now)
        self._requests.add(tenant, -count)

    @property
    def num_tenants(self) -> int:
        """Tenants of which anything is kept."""
        return len(self._requests.holders() | self._tokens.holders())

    def _dequeue(self, request_id: str) -> None:
        tenant, count = self._queued.pop(request_id, ("", 0))
        if count:
            self._tokens.add(tenant, -count)

    def _is_too_much(self, tally: Tally, count: int, tenant: str, limit: int | None) -> bool:
        if limit is None or tally.total + count <= limit:
            return False
        others = len(tally.holders() - {tenant}) if self._fair else 0
        return not (others and tally.of(tenant) + count <= limit // (others + 1))

    def _retry_after(self) -> float:
        """Seconds in which half of what runs and waits here will have ended, at the pace of the last ones."""
        if len(self._ended) < 2 or self._ended[-1] == self._ended[0]:
            return 1.0
        pace = (len(self._ended) - 1) / (self._clock() - self._ended[0])
        return min(max(self._requests.own / 2 / pace, 1.0), MAX_RETRY_SECONDS)
