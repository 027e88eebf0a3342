"""The engine core: one loop of schedule, execute, update. No text, no HTTP, no user input that was not validated."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_engine.config.import_path import load_class
from vllm_engine.core.limits import EngineLimits, find_limits
from vllm_engine.core.request_check import problem_of
from vllm_engine.core.scheduler import Scheduler
from vllm_engine.errors import EngineDead
from vllm_engine.execution.batch import ScheduledBatch
from vllm_engine.execution.executor import UniExecutor
from vllm_engine.execution.launched import Launched
from vllm_engine.logging import get_logger, startup_phase
from vllm_engine.messages import (
    SLEEP_LEVELS,
    SLEEP_TAGS,
    EngineOutputs,
    EngineReady,
    EngineRequest,
    RequestUpdate,
    SleepTag,
)
from vllm_engine.metrics.batch_sizes import BatchSizeLog
from vllm_engine.metrics.iteration_log import log_iteration

logger = get_logger(__name__)

MAX_CONSECUTIVE_FAILURES = 3
"""Failed steps in a row after which the fault is the engine's and not a request's."""


class EngineCore:
    """Owns the scheduler and the executor. Single-threaded: one caller at a time.

    With ``schedules_ahead``, a step is scheduled and launched before the tokens of the one before it are known, so that
    the device finds its next work when it is done with this one. They are told one call of ``step`` later.
    """

    def __init__(self, config: EngineConfig, model_path: Path, *, streams: bool = False) -> None:
        """Load the model, size the KV cache, warm up. Raises ``ConfigError`` for settings that cannot be honoured.

        ``streams``: tokens are handed on as they come. Without, a run can be repeated step by step: no step depends on
        the time that others took.
        """
        self.phases: dict[str, float] = {}
        scheduler_class = _scheduler_class(config)
        with startup_phase(logger, "worker", self.phases):
            self.executor = UniExecutor(config, model_path)
        try:
            self._load(config, scheduler_class)
            if streams:
                self.scheduler.expect_streams()
        except BaseException:
            self.executor.shutdown()
            raise

    def _load(self, config: EngineConfig, scheduler_class: type[Scheduler]) -> None:
        with startup_phase(logger, "weights", self.phases):
            model = self.executor.load_model()
        with startup_phase(logger, "kv cache", self.phases):
            self.limits: EngineLimits = find_limits(config, model, self.executor)
            self.executor.initialize_kv_cache(
                self.limits.layout,
                max_num_seqs=self.limits.max_num_seqs,
                max_model_len=self.limits.max_model_len,
            )
        with startup_phase(logger, "warm-up", self.phases):
            self.executor.warm_up()
        if self.executor.has_graphs_to_capture:
            with startup_phase(logger, "graphs", self.phases):
                self.executor.capture_graphs()
        self.scheduler: Scheduler = scheduler_class(config, self.limits)
        self.ready = EngineReady(
            max_model_len=self.limits.max_model_len,
            vocab_size=model.vocab_size,
            num_kv_blocks=self.limits.layout.num_blocks,
            block_size=self.limits.layout.block_size,
            phases=self.phases,
            prompt_embeds=model.embeds if config.model.enable_prompt_embeds else None,
            max_num_seqs=self.limits.max_num_seqs,
        )
        self._check_invariants: bool = envs.get("VLLM_CHECK_INVARIANTS")
        batch_sizes_every: float | None = envs.get("VLLM_LOG_BATCHSIZE_INTERVAL")
        self._batch_sizes = None if batch_sizes_every is None else BatchSizeLog(batch_sizes_every)
        self._logs_iterations = config.observability.enable_logging_iteration_details
        self._untold: list[RequestUpdate] = []  # of requests that ended outside of a step
        self._failures_in_a_row = 0
        self.schedules_ahead: bool = config.schedules_ahead
        self._scheduled: list[ScheduledBatch] = []
        """Batches whose results the scheduler has not got: none between steps, or with ``schedules_ahead`` one."""
        self._under_way: Launched | None = None
        self._sleep_level: int | None = None
        self._away: set[SleepTag] = set()
        self._calls: dict[str, Callable[..., Any]] = {
            "sleep": self.sleep,
            "release_kv_cache_memory": self.release_kv_cache_memory,
            "wake_up": self.wake_up,
            "is_sleeping": lambda: self.is_sleeping,
            "reset_prefix_cache": self.reset_prefix_cache,
            "check_invariants": self.scheduler.kv.check_invariants,
            "collective_rpc": self.executor.collective_rpc,
            "start_profile": self.executor.start_profile,
            "stop_profile": self.executor.stop_profile,
        }

    def add(self, requests: list[EngineRequest]) -> None:
        """Queue requests. One that cannot be computed ends with an error."""
        for request in requests:
            is_known = request.request_id in self.scheduler
            problem = "request id is already in use" if is_known else problem_of(request, self.ready)
            if problem is None:
                self.scheduler.add(request)
            else:
                self._untold.append(RequestUpdate(request.request_id, [], finish_reason="error", error=problem))

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests at once; what they hold is free for the next step."""
        self.scheduler.abort(request_ids)

    def has_unfinished(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._untold) or self._computes or self._under_way is not None

    @property
    def has_idle_work(self) -> bool:
        """Whether ``use_idle_time`` has anything to do."""
        return self._sleep_level is None and self.executor.has_graphs_left

    def use_idle_time(self) -> None:
        """Do a little of what need not be done before requests are served. Called when there are none."""
        self.executor.capture_next_graph()

    @property
    def _computes(self) -> bool:
        return self._sleep_level is None and self.scheduler.has_unfinished()

    def reset_prefix_cache(self, with_running: bool = False) -> None:
        """Forget all cached prefixes; ``with_running``, also what requests hold, which are computed again."""
        if with_running:
            self.executor.reset()
            self.scheduler.start_over()
        else:
            self.scheduler.kv.forget_prefixes()

    @property
    def sleep_level(self) -> int | None:
        """None while awake."""
        return self._sleep_level

    @property
    def is_sleeping(self) -> bool:
        """Whether requests are held until ``wake_up``."""
        return self._sleep_level is not None

    def sleep(self, level: int) -> None:
        """Hold all requests, those that come included.

        With level 1 and 2 memory goes back to the system: that of the KV cache, and that of the weights, which level 1
        keeps in main memory (on a CPU they are there) and level 2 reads again from their files. What runs keeps its
        tokens and is computed again from them after ``wake_up``, as after a preemption. Asleep already, the engine can
        only sleep deeper; what has been woken goes back, too.

        Raises:
            ValueError: there is no such level.
            RuntimeError: main memory does not have room for the weights; the engine is as it was.
        """
        if level not in SLEEP_LEVELS:
            raise ValueError(f"there is no sleep of level {level!r}")
        if level:
            self.executor.reset()
            self.scheduler.start_over()
            self.executor.sleep(level)
            self._away = set(SLEEP_TAGS)
        self._sleep_level = max(level, self._sleep_level or 0)
        logger.info("asleep at level %d: %d requests wait", self._sleep_level, len(self.scheduler))

    def release_kv_cache_memory(self) -> None:
        """Hold all requests and give the memory of the KV cache back; the weights stay where they are.

        What runs is computed again from its tokens after ``wake_up``, as after ``sleep``, which may still go deeper.
        Where that memory is away already, nothing changes.
        """
        if "kv_cache" in self._away:
            return
        self.executor.reset()
        self.scheduler.start_over()
        self.executor.release_kv_cache_memory()
        self._away.add("kv_cache")
        self._sleep_level = self._sleep_level or 0
        logger.info("the KV cache's memory was given back: %d requests wait", len(self.scheduler))

    def wake_up(self, tags: Sequence[SleepTag] | None = None) -> None:
        """Take memory again, and go on with what was held once all is back.

        Args:
            tags: what is to come back now; None or nothing for all.

        Raises:
            ValueError: for another tag.
            ConfigError: weights cannot be read again.
            RuntimeError: there is too little memory. After either, the engine sleeps on and may be woken again.
        """
        if unknown := set(tags or ()) - set(SLEEP_TAGS):
            raise ValueError(f"nothing sleeps that is called {', '.join(map(repr, sorted(unknown)))}")
        for tag in SLEEP_TAGS:
            if tag in self._away and tag in (tags or SLEEP_TAGS):
                self.executor.wake_up(tag)
                self._away.remove(tag)
        if not self._away:
            self._sleep_level = None

    def step(self) -> EngineOutputs:
        """Compute one batch.

        A step that raises ends the requests of its batch with an error, and only those.

        Raises:
            EngineDead: after several failed steps in a row.
        """
        updates, self._untold = self._untold, []
        try:
            if self._computes:
                self._advance(updates)
            elif self._under_way is not None:
                self._catch_up(updates)
        except EngineDead:
            raise
        except BaseException:
            # Ctrl-C in the caller's thread. Nobody knows how far the step came: not one block of it may be reused.
            self._untold = updates + self._end_all("the step was interrupted")
            raise
        stats = self.scheduler.stats()
        stats.sleep_level = self._sleep_level
        return EngineOutputs(updates=updates, timestamp=time.monotonic(), stats=stats)

    def _advance(self, updates: list[RequestUpdate]) -> None:
        """Launch the next step, and take in the one before it, or this one."""
        started = time.monotonic() if self._logs_iterations else 0.0
        batch = self.scheduler.schedule()
        if self._under_way is not None and not batch.num_scheduled_tokens:
            self.scheduler.take_back(batch)  # all that run await their last tokens
            self._catch_up(updates)
            return
        self._scheduled.append(batch)
        prefills = self.scheduler.count_prefills(batch) if self._logs_iterations else (0, 0)
        launched = self._launch(batch, updates)
        if launched is not None:
            if self._under_way is not None:
                self._catch_up(updates)
            if self._scheduled and self.schedules_ahead:
                self._under_way = launched
            elif self._scheduled:
                self._take_in(launched, updates)
        if self._batch_sizes is not None:
            self._batch_sizes.on_step(batch.total_num_tokens)
        if self._logs_iterations:
            log_iteration(
                self.scheduler.stats(),
                num_steps_ahead=len(self._scheduled),
                num_requests=len(batch.num_scheduled_tokens),
                num_prefills=prefills[0],
                num_prefill_tokens=prefills[1],
                seconds=time.monotonic() - started,
            )
        if self._check_invariants:
            self.scheduler.kv.check_invariants()

    def _launch(self, batch: ScheduledBatch, updates: list[RequestUpdate]) -> Launched | None:
        """Launch a step; None when that failed, and its requests have ended."""
        try:
            return self.executor.launch(batch)
        except Exception as error:
            if self._under_way is not None:
                self._catch_up(updates)  # what was under way may be sound
            if self._scheduled:
                self._contain(error, updates)
            return None

    def _catch_up(self, updates: list[RequestUpdate]) -> None:
        """Take in the step that is under way."""
        launched, self._under_way = self._under_way, None
        if launched is not None:
            self._take_in(launched, updates)

    def _take_in(self, launched: Launched, updates: list[RequestUpdate]) -> None:
        """Wait for the oldest step, and let the scheduler know what it computed."""
        try:
            result = launched.wait()
        except Exception as error:
            self._contain(error, updates)
            return
        updates += self.scheduler.update(self._scheduled.pop(0), result)
        self._failures_in_a_row = 0

    def _contain(self, error: Exception, updates: list[RequestUpdate]) -> None:
        """A step failed: the requests of all that are under way end."""
        ended = self._end_all("the engine failed on this batch")
        updates += ended
        self._failures_in_a_row += 1
        logger.error("a step failed; %d requests end with an error", len(ended), exc_info=error)
        if self._failures_in_a_row >= MAX_CONSECUTIVE_FAILURES:
            raise EngineDead(f"{self._failures_in_a_row} steps failed in a row: {error}") from error

    def _end_all(self, message: str) -> list[RequestUpdate]:
        """End the requests of all batches without a result; the others are computed again."""
        batches, self._scheduled = self._scheduled, []
        self._under_way = None
        ended = [update for batch in batches for update in self.scheduler.fail_batch(batch, message)]
        self.executor.reset()
        return ended

    def call(self, method: str, args: list[Any]) -> Any:
        """Run a control method by name. Raises ``ValueError`` for a name that is not one."""
        if method not in self._calls:
            raise ValueError(f"unknown control method {method!r}")
        self._catch_up(self._untold)  # so that none sees a step half done
        return self._calls[method](*args)

    def close(self) -> None:
        """Release the model and the cache."""
        self.executor.shutdown()


def _scheduler_class(config: EngineConfig) -> type[Scheduler]:
    """Ours, or the subclass that the settings name. Raises ``ConfigError`` when that is none."""
    path = config.scheduler.scheduler_cls
    return Scheduler if path is None else load_class("scheduler_cls", path, Scheduler)
