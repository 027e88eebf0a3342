"""The periodic line in the log."""

import logging
import time
from collections.abc import Callable, Sequence

from vllm_engine.logging import get_logger
from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.stats import RequestStats

LOG_INTERVAL_SECONDS = 10.0


class LoggingStatLogger:
    """One line each ten seconds while there is work: throughput, requests, cache."""

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        interval: float = LOG_INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger or get_logger(__name__)
        self._interval = interval
        self._clock = clock
        self._since = self._last_step = float("-inf")
        self._busy = False
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._finished = 0
        self._queries = 0
        self._hits = 0

    def on_step(
        self,
        stats: SchedulerStats,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        *,
        num_cached_tokens: int = 0,
        times_to_first_token: Sequence[float] = (),
        inter_token_latencies: Sequence[float] = (),
    ) -> None:
        """Count, and write the line when it is time."""
        now = self._clock()
        if now - self._last_step > self._interval and not self._busy:  # nothing was there to do: no zeros for that
            self._begin(now, stats)
        self._last_step = now
        self._busy = stats.num_running + stats.num_waiting > 0
        self._prompt_tokens += num_prompt_tokens
        self._generation_tokens += num_generation_tokens
        if now - self._since >= self._interval:
            self._write(now - self._since, stats)
            self._begin(now, stats)

    def on_finished(self, request: RequestStats) -> None:
        """Count."""
        self._finished += 1

    def _begin(self, now: float, stats: SchedulerStats) -> None:
        self._since = now
        self._prompt_tokens = self._generation_tokens = self._finished = 0
        self._queries, self._hits = stats.prefix_cache_queries, stats.prefix_cache_hits

    def _write(self, seconds: float, stats: SchedulerStats) -> None:
        queries = stats.prefix_cache_queries - self._queries
        hits = stats.prefix_cache_hits - self._hits
        self._logger.info(
            "prompt %.1f tokens/s, generation %.1f tokens/s, %d finished, %d running, %d waiting, "
            "KV cache %.1f %%, prefix cache hits %.1f %%",
            self._prompt_tokens / seconds,
            self._generation_tokens / seconds,
            self._finished,
            stats.num_running,
            stats.num_waiting,
            100 * stats.kv_cache_usage,
            100 * hits / queries if queries else 0.0,
        )
