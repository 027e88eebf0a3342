"""The scheduler: which tokens of which requests the next step computes."""

import bisect
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vllm_engine.config import EngineConfig
from vllm_engine.core.kv_cache.hashing import block_hasher
from vllm_engine.core.kv_cache.manager import CachedPrefix, KVCacheManager
from vllm_engine.core.kv_cache.residency import BlockResidency
from vllm_engine.core.limits import EngineLimits
from vllm_engine.core.policies.choice import make_policy
from vllm_engine.core.policies.policy import StepRules
from vllm_engine.core.prefill_limits import PrefillLimits
from vllm_engine.core.request import Request
from vllm_engine.execution.batch import BatchResult, NewRequest, ScheduledBatch
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineRequest, PositionLogprobs, RequestUpdate, SchedulerStats
from vllm_engine.metrics.buckets import bucket_bounds
from vllm_engine.metrics.histogram import Histogram
from vllm_engine.outputs import FinishReason

logger = get_logger(__name__)


@dataclass(slots=True)
class _Step:
    """A step while it is put together."""

    budget: int
    """Tokens that the step can still take."""
    rules: StepRules
    """What the policy says about it."""
    prefill_share: int = 0
    """Tokens that a prefill gets at first which the step cannot complete."""
    batch: ScheduledBatch = field(default_factory=ScheduledBatch)
    partial: list[Request] = field(default_factory=list)
    """Requests of the batch that will be part-way through their prefill after the step."""

    def take(self, request: Request, count: int) -> None:
        """Compute ``count`` tokens of a request that has its blocks."""
        self.batch.num_scheduled_tokens[request.request_id] = count
        self.budget -= count
        missing = request.num_prefill_tokens - request.num_computed_tokens
        if missing > 0:
            self.rules.take(request, count)
            if count < missing:
                self.partial.append(request)


_Flight = tuple[Request, int, bool]
"""A request in a step under way, its life when that was scheduled, and whether the step gives it a new token."""


class Scheduler:
    """Token-budget scheduling: every step, each request may move toward its last known token.

    Running requests come first, in the order of the policy, then waiting ones as long as tokens, places and KV
    blocks last. The ``Policy`` may also give a waiting request the place of a running one, limit what prefills take of
    a step, and let requests stand back from it. When a running request finds no blocks, the last one in the order is
    preempted: its blocks go back and it waits to be computed again.

    Every request that generates has its token in each step, unless the policy lets it stand back; prefills, which is
    also what a preempted request has to do again, share the rest. No more of them are left part-way than the settings
    allow (``PrefillLimits``). A waiting request that may not be left part-way lets no other pass, except that a long
    one lets short ones pass. So nobody waits for ever: whoever is part-way gets tokens in each step, and a place that
    becomes free goes to the first one.

    A step may be scheduled before those under way are known to ``update``, which takes them in the order in which they
    were scheduled. A request whose last token that can be is under way has no place in the next step; one that turns
    out to have ended has been computed once more in vain. Its blocks are free at once: steps run one after the other,
    so what the one under way writes there is written before anybody else writes there. For the same reason the token
    that a preempted request had under way is good: without it, the request would find room for what it has, begin
    again, and be preempted for want of room for the next one, over and over.

    A setting can name a subclass to be used instead (``scheduler_cls``); it is made with the same two arguments and
    finds what its user wants to tell it in ``config.additional_config``.
    """

    def __init__(self, config: EngineConfig, limits: EngineLimits, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds that only grow, by which policies go."""
        self.config = config
        self.limits = limits
        bounds = bucket_bounds(config.observability.custom_histogram_buckets)
        residency = None
        if config.observability.kv_cache_metrics:
            residency = BlockResidency(config.observability.kv_cache_metrics_sample, bounds["kv_cache_residency"])
        self.kv = KVCacheManager(limits.layout, enable_prefix_caching=config.cache.prefix_caching, residency=residency)
        self._prefills = PrefillLimits(config.scheduler, max_model_len=limits.max_model_len)
        self._policy = make_policy(config, limits, self._prefills.is_long, clock)
        self._running: list[Request] = []  # sorted by the policy: the last one is preempted first
        self._requests: dict[str, Request] = {}
        self._removed: list[str] = []
        self._under_way: deque[tuple[float, list[_Flight]]] = deque()  # with the time when each was scheduled
        self._clock = clock
        self._last_end = clock()
        self._arrivals = 0
        self._token_budget = limits.max_num_batched_tokens
        self._max_num_seqs = limits.max_num_seqs
        self._chunked = config.scheduler.chunked_prefill
        self._reserves_prompts = config.scheduler.scheduler_reserve_full_isl
        self._max_prefill_tokens = min(self._prefills.max_tokens or self._token_budget, self._token_budget)
        self._hasher = block_hasher(config.cache.prefix_caching_hash_algo)
        self._counters = SchedulerStats()
        self._step_tokens = Histogram(bounds["iteration_tokens"])

    def expect_streams(self) -> None:
        """Tokens are handed on as they come: where steps are short, prompts may come first (``PromptsFirst``)."""
        self._policy.expect_streams()

    # -- requests in and out ------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a validated request."""
        self._arrivals += 1
        entry = Request(
            request,
            self._hasher,
            self.limits.layout.block_size,
            self._arrivals,
            max_model_len=self.limits.max_model_len,
        )
        self._requests[entry.request_id] = entry
        self._policy.add(entry)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop requests, whatever they are doing. Unknown ids (finished meanwhile) are ignored."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._finish(request)

    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    # -- one step -----------------------------------------------------------------------------------------------

    def schedule(self) -> ScheduledBatch:
        """Choose the tokens of the next step and give them their KV blocks."""
        step = _Step(self._token_budget, self._policy.begin_step(self._running, self._could_start, self._preempt))
        num_preempted = self._counters.num_preemptions
        self._schedule_running(step)
        if self._counters.num_preemptions == num_preempted:
            # A preemption says that blocks are short: nobody new may take the freed ones in the same step.
            self._schedule_waiting(step)
            self._hand_out_rest(step)
        step.batch.removed, self._removed = self._removed, []
        self._under_way.append((self._clock(), self._take_off(step.batch)))
        return step.batch

    def take_back(self, batch: ScheduledBatch) -> None:
        """The batch that was scheduled last, without a token in it, will not run: the next one tells what it told."""
        self._under_way.pop()
        self._removed[:0] = batch.removed

    def _take_off(self, batch: ScheduledBatch) -> list[_Flight]:
        """The step is under way: what it computes counts as computed."""
        flights = []
        for request_id, count in batch.num_scheduled_tokens.items():
            request = self._requests[request_id]
            request.num_computed_tokens += count
            samples = request.num_computed_tokens == len(request.token_ids) + request.num_unknown_tokens
            request.num_unknown_tokens += samples
            flights.append((request, request.life, samples))
        return flights

    def _could_start(self, request: Request) -> bool:
        """Whether there are a place and blocks for a waiting request."""
        if len(self._running) >= self._max_num_seqs:
            return False
        prefix = self.kv.cached_prefix(request)
        wanted = self.kv.blocks_to_start(request, prefix, step_tokens=self._max_prefill_tokens)
        return wanted <= self.kv.pool.num_available

    def _schedule_running(self, step: _Step) -> None:
        rules = step.rules
        # There are never more running requests than tokens in a step: each prefill has at least one, too.
        prefill_budget = step.budget - sum(not request.is_prefilling for request in self._running)
        step.prefill_share = self._prefills.share(prefill_budget, rules.num_partial)
        for request in self._running:  # of which only later ones are preempted meanwhile
            unknown = request.num_unknown_tokens
            num_tokens = len(request.token_ids) + unknown
            if unknown and num_tokens >= request.max_num_tokens:
                continue  # its last tokens are under way
            count = num_tokens - request.num_computed_tokens
            if request.is_prefilling:
                # At least one: so nobody stands still who is part-way.
                count = max(1, rules.limit(request, min(count, step.prefill_share, self._max_prefill_tokens)))
            elif rules.stands_back is not None and rules.stands_back(request):
                continue
            blocks = self.kv.allocate(request, count)
            while blocks is None and self._preempt_last() is not request:
                blocks = self.kv.allocate(request, count)
            if blocks is None:
                return
            if any(blocks):
                step.batch.new_block_ids[request.request_id] = blocks
            step.take(request, count)

    def _schedule_waiting(self, step: _Step) -> None:
        with_long = True
        while step.budget > 0 and len(self._running) < self._max_num_seqs:
            request = self._policy.first(with_long=with_long)
            if request is None:
                return
            prefix = self.kv.cached_prefix(request)
            remaining = request.num_tokens - prefix.num_tokens
            count = step.rules.limit(request, min(remaining, step.budget, self._max_prefill_tokens))
            if not count:
                return
            if count < remaining:
                if not self._chunked:
                    return
                if not self._may_leave_partial(step, request):
                    if not self._prefills.is_long(request):
                        return
                    with_long = False  # it waits for its turn, and short ones pass
                    continue
                count = min(count, step.prefill_share)
            if not self._has_room(step, request, prefix):
                return
            blocks = self.kv.allocate(request, count, prefix)
            if blocks is None:
                return
            self._start(step, request, prefix, blocks)
            step.take(request, count)

    def _may_leave_partial(self, step: _Step, request: Request) -> bool:
        """Whether one more request may be part-way through its prefill after the step."""
        return self._prefills.has_place(request, step.partial) or step.rules.admits(request, step.partial)

    def _has_room(self, step: _Step, request: Request, prefix: CachedPrefix) -> bool:
        """Whether the whole of a waiting request fits the KV cache beside those that are part-way, if that is asked.

        With nothing running there is nothing to wait for: the cache holds any one request.
        """
        if not self._reserves_prompts or not self._running:
            return True
        reserved = sum(self.kv.blocks_to_come(other, step_tokens=self._max_prefill_tokens) for other in step.partial)
        wanted = self.kv.blocks_to_start(request, prefix, step_tokens=self._max_prefill_tokens)
        return reserved + wanted <= self.kv.pool.num_available

    def _start(self, step: _Step, request: Request, prefix: CachedPrefix, blocks: list[list[int]]) -> None:
        """Let a waiting request run, from the end of a cached prefix."""
        bisect.insort(self._running, request, key=self._policy.order)
        self._policy.start(request)
        request.begin(prefix.num_tokens)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = prefix.num_tokens
            request.scheduled_ts = time.monotonic()
            self._policy.charge_prompt(request, request.num_tokens - prefix.num_tokens)
            if self.kv.looks_up(request):
                self._counters.prefix_cache_queries += request.num_tokens
                self._counters.prefix_cache_hits += prefix.num_tokens
        step.batch.new_requests.append(
            NewRequest(
                request=request.request,
                token_ids=request.token_ids,
                block_ids=blocks,
                num_computed_tokens=prefix.num_tokens,
                wants_prompt_logprobs=request.wants_prompt_logprobs,
            )
        )

    def _hand_out_rest(self, step: _Step) -> None:
        """Give tokens that nobody else could use to the prefills that got no more than their share."""
        for request in step.partial:
            held = step.batch.num_scheduled_tokens[request.request_id]
            remaining = request.num_prefill_tokens - request.num_computed_tokens
            wanted = min(remaining, self._max_prefill_tokens, held + step.budget) - held
            added = step.rules.limit(request, wanted) if wanted > 0 else 0
            if not added:
                continue
            more = self.kv.allocate(request, held + added)
            if more is None:
                return
            if any(more):
                _add_blocks(step.batch, request, more)
            step.batch.num_scheduled_tokens[request.request_id] = held + added
            step.budget -= added
            step.rules.take(request, added)

    def _preempt_last(self) -> Request:
        """Send the last running request back to the queue; its tokens will be computed again."""
        request = self._running[-1]
        self._preempt(request)
        logger.debug("preempted %s: out of KV blocks", request.request_id)
        return request

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self._send_back(request)
        self._counters.num_preemptions += 1
        request.num_preemptions += 1

    def _send_back(self, request: Request) -> None:
        self.kv.free(request)
        self._removed.append(request.request_id)
        request.start_over()
        self._policy.send_back(request)

    def update(self, batch: ScheduledBatch, result: BatchResult) -> list[RequestUpdate]:
        """Take in what the oldest step under way computed: new tokens, and which requests are finished by them."""
        self._counters.num_steps += 1
        self._counters.num_corrupted += result.num_corrupted
        self._step_tokens.observe(batch.total_num_tokens)
        updates = []
        begin, flights = self._under_way.popleft()
        end = self._clock()
        if flights:
            self._policy.end_step(end - max(begin, self._last_end))
        self._last_end = end
        for request, life, samples in flights:
            request_id = request.request_id
            if self._requests.get(request_id) is not request:
                continue  # it has ended while the step ran
            if request.life == life:
                request.num_unknown_tokens -= samples
            elif not request.has_waited_since(life):
                continue
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
            reason, stop_reason = request.end_at(token_id)
            if reason is not None:
                break
        self._policy.charge_output(request, accepted)
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

    def _finish(self, request: Request) -> None:
        """Forget a request and give back what it holds."""
        del self._requests[request.request_id]
        if not self._policy.remove(request):  # it did not wait
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

        What the step was to write into the cache is not there, so no cached prefix can be trusted. Of other steps under
        way nothing is known, either: no ``update`` with them follows.
        """
        self._under_way.clear()
        updates = [
            self._fail(request, message)
            for request_id in batch.num_scheduled_tokens
            if (request := self._requests.get(request_id)) is not None
        ]
        self.start_over()
        return updates

    def start_over(self) -> None:
        """Compute every request again from its tokens, as nothing in the cache holds any more."""
        while self._running:
            self._send_back(self._running.pop())
        self.kv.forget_prefixes()

    # -- what it tells ------------------------------------------------------------------------------------------

    def count_prefills(self, batch: ScheduledBatch) -> tuple[int, int]:
        """Prefills in the batch that was scheduled last, and their tokens."""
        counts = [
            count
            for request_id, count in batch.num_scheduled_tokens.items()
            for request in [self._requests[request_id]]
            if request.num_computed_tokens - count < request.num_prefill_tokens
        ]
        return len(counts), sum(counts)

    def stats(self) -> SchedulerStats:
        """State now, and counters since start."""
        counters = self._counters
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=self._policy.num_waiting,
            kv_cache_usage=self.kv.usage,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            num_preemptions=counters.num_preemptions,
            num_steps=counters.num_steps,
            num_corrupted=counters.num_corrupted,
            step_tokens=self._step_tokens.counts(),
            kv_residency=None if self.kv.residency is None else self.kv.residency.counts(),
        )


def _add_blocks(batch: ScheduledBatch, request: Request, more: list[list[int]]) -> None:
    """Give a request of the batch more blocks than it has got in this step already."""
    for new in batch.new_requests:
        if new.request is request.request:
            given = new.block_ids
            break
    else:
        given = batch.new_block_ids.setdefault(request.request_id, [[] for _ in more])
    for blocks, added in zip(given, more, strict=True):
        blocks += added
