"""The engine's statistics as Prometheus metrics. The names are those that dashboards for vLLM know."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_engine.config import EngineConfig
from vllm_engine.messages import EngineReady, SchedulerStats
from vllm_engine.metrics.buckets import bucket_bounds
from vllm_engine.metrics.deprecation import DEPRECATED, is_shown
from vllm_engine.metrics.histogram import Histogram
from vllm_engine.metrics.stats import RequestStats
from vllm_server.telemetry.families import Labelled, key_of
from vllm_server.telemetry.snapshot import Family

_FINISH_REASONS = ("stop", "length", "abort", "error")
_ENGINE = "0"
"""There is one engine."""


class EngineMetrics:
    """A ``StatLogger`` that counts, and a source of metrics that tells.

    ``describe`` before the first request, once the engine is ready: it brings what only the loaded model knows.
    """

    def __init__(self, model_name: str, config: EngineConfig | None = None) -> None:
        """``config`` has the settings of the metrics; None is the default of each."""
        self.moment = 0.0
        self._make = Labelled({"model_name": model_name, "engine": _ENGINE})
        self._config = config
        self._escape = None if config is None else config.observability.show_hidden_metrics_for_version
        self._follows_blocks = config is not None and config.observability.kv_cache_metrics
        self._ready: EngineReady | None = None
        self._stats = SchedulerStats()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generation_tokens = 0
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self._set_up_histograms(max_model_len=None)

    def _set_up_histograms(self, max_model_len: int | None) -> None:
        custom = None if self._config is None else self._config.observability.custom_histogram_buckets
        bounds = bucket_bounds(custom, max_model_len=max_model_len)
        latency, tokens = bounds["request_latency"], bounds["request_tokens"]
        self._time_to_first_token = Histogram(bounds["time_to_first_token"])
        self._inter_token_latency = Histogram(bounds["inter_token_latency"])
        self._time_per_output_token = Histogram(bounds["inter_token_latency"])
        self._step_tokens = Histogram(bounds["iteration_tokens"])
        self._e2e_latency = Histogram(latency)
        self._queue_time = Histogram(latency)
        self._prefill_time = Histogram(latency)
        self._decode_time = Histogram(latency)
        self._inference_time = Histogram(latency)
        self._request_prompt_tokens = Histogram(tokens)
        self._request_computed_tokens = Histogram(tokens)
        self._request_generation_tokens = Histogram(tokens)
        self._request_longest = Histogram(tokens)
        self._request_max_tokens = Histogram(tokens)
        self._request_n = Histogram(bounds["request_params_n"])
        self._request_preemptions = Histogram(bounds["request_num_preemptions"])
        self._block_lifetime = Histogram(bounds["kv_cache_residency"])
        self._block_idle = Histogram(bounds["kv_cache_residency"])
        self._block_reuse_gap = Histogram(bounds["kv_cache_residency"])

    # ---- told by the engine ----

    def describe(self, config: EngineConfig, ready: EngineReady) -> None:
        """Take in the settings and what the engine made of them. Forgets what was counted before."""
        self._config, self._ready = config, ready
        self._set_up_histograms(max_model_len=ready.max_model_len)

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
        """Take in one step."""
        self.moment = time.monotonic()
        self._stats = stats
        self._prompt_tokens += num_prompt_tokens
        self._cached_tokens += num_cached_tokens
        self._generation_tokens += num_generation_tokens
        self._time_to_first_token.observe_all(times_to_first_token)
        self._inter_token_latency.observe_all(inter_token_latencies)

    def on_finished(self, request: RequestStats) -> None:
        """Take in one request that is done."""
        self._finished[request.finish_reason] += 1
        self._time_per_output_token.observe(request.mean_time_per_output_token)
        self._e2e_latency.observe(request.e2e_latency)
        self._queue_time.observe(request.queue_time)
        self._prefill_time.observe(request.prefill_time)
        self._decode_time.observe(request.decode_time)
        self._inference_time.observe(request.inference_time)
        self._request_prompt_tokens.observe(request.num_prompt_tokens)
        self._request_computed_tokens.observe(request.num_prompt_tokens - request.num_cached_tokens)
        self._request_generation_tokens.observe(request.num_generation_tokens)
        self._request_longest.observe(request.max_num_generation_tokens)
        self._request_max_tokens.observe(request.max_tokens)
        self._request_n.observe(request.n)
        self._request_preemptions.observe(request.num_preemptions)

    # ---- asked for the page ----

    def families(self) -> Iterator[Family]:
        """All metrics as they stand now.

        What is the scheduler's own is the same in every process that hears from it; the rest counts what was asked of
        this process.
        """
        for family in self._all():
            if is_shown(family.name, self._escape):
                if family.name in DEPRECATED:
                    family.help += _deprecation(family.name)
                yield family

    def _all(self) -> Iterator[Family]:
        yield from self._scheduler()
        if self._ready is not None and self._config is not None:
            yield _cache_config(self._config, self._ready)
        yield from self._cache()
        yield from self._counters()
        for name, text, histogram in self._histograms():
            yield self._make.histogram(name, text, histogram)

    def _scheduler(self) -> Iterator[Family]:
        stats, make = self._stats, self._make
        running, waiting, asleep = stats.num_running, stats.num_waiting, stats.sleep_level is not None
        yield make.gauge("vllm:num_requests_running", "Requests that are being computed.", running, "latest")
        yield make.gauge("vllm:num_requests_waiting", "Requests that wait for their turn.", waiting, "latest")
        yield make.by(
            "gauge",
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait: for room (capacity), or until the engine is woken (deferred).",
            "reason",
            {"capacity": 0 if asleep else waiting, "deferred": waiting if asleep else 0},
            "latest",
        )
        yield make.by(
            "gauge",
            "vllm:engine_sleep_state",
            "Whether the engine is awake, asleep with its weights in main memory, or asleep without them.",
            "sleep_state",
            {
                "awake": int(not asleep),
                "weights_offloaded": int(stats.sleep_level == 1),
                "discard_all": int(stats.sleep_level == 2),
            },
            "latest",
        )
        yield make.gauge("vllm:num_requests_swapped", "Requests whose KV cache is elsewhere: none.", 0, "latest")
        yield make.counter(
            "vllm:num_preemptions_total", "How often a running request had to give way.", stats.num_preemptions, "max"
        )
        yield make.counter(
            "vllm:corrupted_requests_total", "Requests whose logits held NaN.", stats.num_corrupted, "max"
        )
        self._step_tokens.take(stats.step_tokens)
        yield make.histogram("vllm:iteration_tokens_total", "Tokens computed in a step.", self._step_tokens, "max")

    def _cache(self) -> Iterator[Family]:
        stats, make = self._stats, self._make
        usage, queries, hits = stats.kv_cache_usage, stats.prefix_cache_queries, stats.prefix_cache_hits
        used = "Used part of the KV cache; 1 is full."
        looked_up, found = "Tokens looked up in the prefix cache.", "Tokens found in the prefix cache."
        yield make.gauge("vllm:kv_cache_usage_perc", used, usage, "latest")
        yield make.counter("vllm:prefix_cache_queries_total", looked_up, queries, "max")
        yield make.counter("vllm:prefix_cache_hits_total", found, hits, "max")
        yield make.gauge("vllm:gpu_cache_usage_perc", used, usage, "latest")
        yield make.counter("vllm:gpu_prefix_cache_queries_total", looked_up, queries, "max")
        yield make.counter("vllm:gpu_prefix_cache_hits_total", found, hits, "max")
        rate = hits / queries if queries else 0.0
        yield make.gauge("vllm:gpu_prefix_cache_hit_rate", "Share of the tokens looked up.", rate, "latest")
        yield make.gauge("vllm:cpu_cache_usage_perc", "Used part of a second cache: there is none.", 0, "latest")
        yield make.gauge("vllm:cpu_prefix_cache_hit_rate", "Hits in a second cache: there is none.", 0, "latest")
        if self._follows_blocks:
            yield from self._blocks()

    def _blocks(self) -> Iterator[Family]:
        if (residency := self._stats.kv_residency) is not None:
            self._block_lifetime.take(residency.lifetime)
            self._block_idle.take(residency.idle_before_evict)
            self._block_reuse_gap.take(residency.reuse_gap)
        for name, text, histogram in (
            ("lifetime", "Seconds from a KV block's allocation to its eviction.", self._block_lifetime),
            ("idle_before_evict", "Seconds from a KV block's last use to its eviction.", self._block_idle),
            ("reuse_gap", "Seconds between two uses of a KV block, of its last ones.", self._block_reuse_gap),
        ):
            yield self._make.histogram(f"vllm:kv_block_{name}_seconds", text, histogram, "max")

    def _counters(self) -> Iterator[Family]:
        make, prompt, cached = self._make, self._prompt_tokens, self._cached_tokens
        yield make.counter("vllm:prompt_tokens_total", "Tokens of prompts that were processed.", prompt)
        yield make.by(
            "counter",
            "vllm:prompt_tokens_by_source_total",
            "Tokens of prompts, by where their keys and values came from.",
            "source",
            {"local_compute": prompt - cached, "local_cache_hit": cached},
        )
        yield make.counter("vllm:prompt_tokens_cached_total", "Tokens of prompts that came from a cache.", cached)
        yield make.by(
            "counter",
            "vllm:prompt_tokens_cached_by_source_total",
            "Tokens of prompts that came from a cache, by where that is.",
            "source",
            {"device": cached},
        )
        yield make.counter("vllm:generation_tokens_total", "Tokens generated.", self._generation_tokens)
        yield make.by(
            "counter",
            "vllm:request_success_total",
            "Requests that are done, by reason.",
            "finished_reason",
            self._finished,
        )

    def _histograms(self) -> Iterator[tuple[str, str, Histogram]]:
        yield "vllm:time_to_first_token_seconds", "Seconds from arrival to first token.", self._time_to_first_token
        yield "vllm:inter_token_latency_seconds", "Seconds between tokens.", self._inter_token_latency
        yield "vllm:time_per_output_token_seconds", "Seconds between tokens.", self._inter_token_latency
        yield (
            "vllm:request_time_per_output_token_seconds",
            "Mean seconds between the tokens of a request.",
            self._time_per_output_token,
        )
        yield "vllm:e2e_request_latency_seconds", "Seconds from arrival to end.", self._e2e_latency
        yield "vllm:request_queue_time_seconds", "Seconds from arrival to first step.", self._queue_time
        yield "vllm:request_prefill_time_seconds", "Seconds from first step to first token.", self._prefill_time
        yield "vllm:request_decode_time_seconds", "Seconds from first to last token.", self._decode_time
        yield "vllm:request_inference_time_seconds", "Seconds from first step to last token.", self._inference_time
        yield "vllm:request_prompt_tokens", "Prompt tokens of a request.", self._request_prompt_tokens
        yield (
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were computed, and not cached.",
            self._request_computed_tokens,
        )
        yield "vllm:request_generation_tokens", "Generated tokens of a request.", self._request_generation_tokens
        yield (
            "vllm:request_max_num_generation_tokens",
            "Generated tokens of a request's longest completion.",
            self._request_longest,
        )
        yield "vllm:request_params_max_tokens", "max_tokens of a request that has one.", self._request_max_tokens
        yield "vllm:request_params_n", "n of a request.", self._request_n
        yield "vllm:request_num_preemptions", "How often a request had to give way.", self._request_preemptions
        yield "vllm:time_in_queue_requests", "Seconds from arrival to first step.", self._queue_time
        in_ms = _scaled(self._inference_time, 1000)
        for part in ("forward", "execute"):
            yield f"vllm:model_{part}_time_milliseconds", "Milliseconds from first step to last token.", in_ms


def _deprecation(name: str) -> str:
    """What is said of a metric that goes away."""
    since, instead = DEPRECATED[name]
    what = f" Deprecated, and removed in {since.later(2)}"
    return f"{what}: use {instead}." if instead else f"{what}."


def _scaled(histogram: Histogram, factor: float) -> Histogram:
    scaled = Histogram([bound * factor for bound in histogram.bounds])
    counts = histogram.counts()
    counts.sum *= factor
    scaled.take(counts)
    return scaled


def _cache_config(config: EngineConfig, ready: EngineReady) -> Family:
    """The cache's settings as labels of the number one, with what the engine chose where they say nothing."""
    name = "vllm:cache_config_info"
    settings = {field.name: getattr(config.cache, field.name) for field in dataclasses.fields(config.cache)}
    settings |= {
        "block_size": ready.block_size,
        "cache_dtype": config.cache.kv_cache_dtype,
        "enable_prefix_caching": config.cache.prefix_caching,
        "num_gpu_blocks": ready.num_kv_blocks,
    }
    labels = {"engine": _ENGINE, **{key: _text(value) for key, value in sorted(settings.items())}}
    return Family(name, "gauge", "Settings of the KV cache.", "max", {key_of(name, labels): 1})


def _text(value: Any) -> str:
    """A setting as dashboards know it: Python's words for yes, no and nothing."""
    return str(value) if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
