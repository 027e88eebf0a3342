"""The scheduler: which tokens of which requests the next step computes."""

import bisect
import time
from collections.abc import Iterable

from vllm_engine.config import SchedulerConfig
from vllm_engine.core.kv_cache.manager import KVCacheManager
from vllm_engine.core.queue import RequestQueue, fcfs_order, priority_order
from vllm_engine.core.request import Request
from vllm_engine.execution.batch import BatchResult, NewRequest, ScheduledBatch
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest, PositionLogprobs, RequestUpdate, SchedulerStats
from vllm_engine.outputs import FinishReason

logger = get_logger(__name__)


class Scheduler:
    """Token-budget scheduling: every step, each request may move toward its last known token.

    Running requests come first, in the order of the policy, then waiting ones as long as tokens, places and KV
    blocks last. When a running request finds no blocks, the last one in the order is preempted: its blocks go back
    and it waits to be computed again.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        layout: KVCacheLayout,
        *,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        max_model_len: int,
        enable_prefix_caching: bool,
    ) -> None:
        self.kv = KVCacheManager(layout, enable_prefix_caching=enable_prefix_caching)
        self._order = priority_order if config.scheduling_policy == "priority" else fcfs_order
        self._waiting = RequestQueue(self._order)
        self._running: list[Request] = []  # sorted by the policy: the last one is preempted first
        self._requests: dict[str, Request] = {}
        self._removed: list[str] = []
        self._arrivals = 0
        self._token_budget = max_num_batched_tokens
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._chunked = config.chunked_prefill
        self._prefill_limit = config.long_prefill_token_threshold or max_num_batched_tokens
        self._block_size = layout.block_size
        self._counters = SchedulerStats()

    # -- requests in and out ------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a validated request."""
        self._arrivals += 1
        entry = Request(request, self._block_size, self._arrivals)
        self._requests[entry.request_id] = entry
        self._waiting.push(entry)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop requests, whatever they are doing. Unknown ids (finished meanwhile) are ignored."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request)

    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    # -- one step -----------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch:
        """Choose the tokens of the next step and give them their KV blocks."""
        batch = ScheduledBatch()
        num_preempted = self._counters.num_preemptions
        budget = self._schedule_running(batch, self._token_budget)
        if self._counters.num_preemptions == num_preempted:
            # A preemption says that blocks are short: nobody new may take the freed ones in the same step.
            self._schedule_waiting(batch, budget)
        batch.removed, self._removed = self._removed, []
        return batch

    def _schedule_running(self, batch: ScheduledBatch, budget: int) -> int:
        index = 0
        while index < len(self._running) and budget > 0:
            request = self._running[index]
            count = min(request.num_tokens - request.num_computed_tokens, budget, self._prefill_limit)
            blocks = self.kv.allocate(request, count)
            while blocks is None and self._preempt_last() is not request:
                blocks = self.kv.allocate(request, count)
            if blocks is None:
                break
            if any(blocks):
                batch.new_block_ids[request.request_id] = blocks
            batch.num_scheduled_tokens[request.request_id] = count
            budget -= count
            index += 1
        return budget

    def _schedule_waiting(self, batch: ScheduledBatch, budget: int) -> None:
        while self._waiting and budget > 0 and len(self._running) < self._max_num_seqs:
            request = self._waiting.peek()
            prefix = self.kv.cached_prefix(request)
            remaining = request.num_tokens - prefix.num_tokens
            if not self._chunked and remaining > budget and batch.num_scheduled_tokens:
                break
            count = min(remaining, budget, self._prefill_limit)
            blocks = self.kv.allocate(request, count, prefix)
            if blocks is None:
                break
            self._waiting.pop()
            bisect.insort(self._running, request, key=self._order)
            request.num_computed_tokens = prefix.num_tokens
            if request.num_cached_tokens is None:
                request.num_cached_tokens = prefix.num_tokens
                request.scheduled_ts = time.monotonic()
                if self.kv.looks_up(request):
                    self._counters.prefix_cache_queries += request.num_tokens
                    self._counters.prefix_cache_hits += prefix.num_tokens
            batch.new_requests.append(
                NewRequest(
                    request=request.request,
                    token_ids=request.token_ids,
                    block_ids=blocks,
                    num_computed_tokens=prefix.num_tokens,
                    wants_prompt_logprobs=request.wants_prompt_logprobs,
                )
            )
            batch.num_scheduled_tokens[request.request_id] = count
            budget -= count

    def _preempt_last(self) -> Request:
        """Send the last running request back to the queue; its tokens will be computed again."""
        request = self._running.pop()
        self._send_back(request)
        self._counters.num_preemptions += 1
        request.num_preemptions += 1
        logger.debug("preempted %s: out of KV blocks", request.request_id)
        return request

    def _send_back(self, request: Request) -> None:
        self.kv.free(request)
        self._removed.append(request.request_id)
        request.num_computed_tokens = 0
        request.prompt_logprobs.clear()
        self._waiting.push(request)

    def update(self, batch: ScheduledBatch, result: BatchResult) -> list[RequestUpdate]:
        """Take in what a step computed: progress, new tokens, and which requests are finished by them."""
        self._counters.num_steps += 1
        updates = []
        for request_id, count in batch.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is None:  # aborted while the step ran
                continue
            request.num_computed_tokens += count
            if request_id in result.errors:
                updates.append(self._fail(request, result.errors[request_id]))
                continue
            if request.wants_prompt_logprobs:
                request.prompt_logprobs += result.prompt_logprobs.get(request_id, ())
            sampled = result.sampled.get(request_id)
            if sampled:
                updates.append(self._take_tokens(request, sampled, result.logprobs.get(request_id)))
        return updates

    def _take_tokens(
        self, request: Request, sampled: list[int], logprobs: list[PositionLogprobs] | None
    ) -> RequestUpdate:
        reason: FinishReason | None = None
        stop_reason: int | None = None
        accepted = 0
        for token_id in sampled:
            request.token_ids.append(token_id)
            accepted += 1
            reason, stop_reason = self._finish_reason(request, token_id)
            if reason is not None:
                break
        update = RequestUpdate(
            request_id=request.request_id,
            new_token_ids=sampled[:accepted],
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=logprobs[:accepted] if logprobs is not None else None,
            num_cached_tokens=request.num_cached_tokens or 0,
            num_preemptions=request.num_preemptions,
            scheduled_ts=request.scheduled_ts,
        )
        if request.wants_prompt_logprobs:
            update.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
            request.wants_prompt_logprobs = False
        if reason is not None:
            self._finish(request)
        return update

    def _finish_reason(self, request: Request, token_id: int) -> tuple[FinishReason | None, int | None]:
        wanted = request.request
        if token_id in wanted.stop_token_ids:
            is_eos = token_id in wanted.eos_token_ids and token_id not in (wanted.params.stop_token_ids or ())
            return "stop", None if is_eos else token_id
        if request.num_output_tokens >= wanted.max_tokens or request.num_tokens >= self._max_model_len:
            return "length", None
        return None, None

    def _finish(self, request: Request) -> None:
        """Forget a request and give back what it holds."""
        del self._requests[request.request_id]
        if self._waiting.remove(request.request_id) is None:
            self._running.remove(request)
            self._removed.append(request.request_id)
        self.kv.free(request)

    def _fail(self, request: Request, message: str) -> RequestUpdate:
        self._finish(request)
        return RequestUpdate(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason="error",
            error=message,
            num_preemptions=request.num_preemptions,
            scheduled_ts=request.scheduled_ts,
        )

    # -- when a step fails --------------------------------------------------------------------------------------

    def fail_batch(self, batch: ScheduledBatch, message: str) -> list[RequestUpdate]:
        """A step raised: its requests end with an error, all others are computed again from their tokens.

        What the step was to write into the cache is not there, so no cached prefix can be trusted.
        """
        updates = [
            self._fail(request, message)
            for request_id in batch.num_scheduled_tokens
            if (request := self._requests.get(request_id)) is not None
        ]
        while self._running:
            self._send_back(self._running.pop())
        self.kv.forget_prefixes()
        return updates

    # -- what it tells ------------------------------------------------------------------------------------------

    def stats(self) -> SchedulerStats:
        """State now, and counters since start."""
        counters = self._counters
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_cache_usage=self.kv.usage,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            num_preemptions=counters.num_preemptions,
            num_steps=counters.num_steps,
        )
