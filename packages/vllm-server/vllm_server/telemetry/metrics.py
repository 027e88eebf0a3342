"""The engine's statistics as Prometheus metrics. The names are those that dashboards for vLLM know."""

import time
from collections.abc import Iterator, Sequence

from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.stats import RequestStats
from vllm_server.telemetry.histogram import Histogram, one_two_five
from vllm_server.telemetry.snapshot import Combine, Family, Kind, series_key

_FAST_SECONDS = one_two_five(0.001, 100)
_SLOW_SECONDS = one_two_five(0.01, 5000)
_TOKENS = one_two_five(1, 1_000_000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FEW = (1, 2, 5, 10, 20)

_FINISH_REASONS = ("stop", "length", "abort", "error")
_LABELS = ("model_name", "engine")


class EngineMetrics:
    """A ``StatLogger`` that counts, and a source of metrics that tells. Only one engine: its label is ``0``."""

    def __init__(self, model_name: str) -> None:
        self.moment = 0.0
        self._labels = (model_name, "0")
        self._stats = SchedulerStats()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generation_tokens = 0
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self._time_to_first_token = Histogram(_FAST_SECONDS)
        self._inter_token_latency = Histogram(_FAST_SECONDS)
        self._time_per_output_token = Histogram(_FAST_SECONDS)
        self._step_tokens = Histogram(_STEP_TOKENS)
        self._e2e_latency = Histogram(_SLOW_SECONDS)
        self._queue_time = Histogram(_SLOW_SECONDS)
        self._prefill_time = Histogram(_SLOW_SECONDS)
        self._decode_time = Histogram(_SLOW_SECONDS)
        self._inference_time = Histogram(_SLOW_SECONDS)
        self._request_prompt_tokens = Histogram(_TOKENS)
        self._request_generation_tokens = Histogram(_TOKENS)
        self._request_max_tokens = Histogram(_TOKENS)
        self._request_n = Histogram(_FEW)
        self._request_preemptions = Histogram((0, *_FEW))

    # ---- told by the engine ----

    def on_step(
        self,
        stats: SchedulerStats,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        *,
        times_to_first_token: Sequence[float] = (),
        inter_token_latencies: Sequence[float] = (),
    ) -> None:
        """Take in one step."""
        self.moment = time.monotonic()
        self._stats = stats
        self._prompt_tokens += num_prompt_tokens
        self._generation_tokens += num_generation_tokens
        if num_prompt_tokens or num_generation_tokens:
            self._step_tokens.observe(num_prompt_tokens + num_generation_tokens)
        self._time_to_first_token.observe_all(times_to_first_token)
        self._inter_token_latency.observe_all(inter_token_latencies)

    def on_finished(self, request: RequestStats) -> None:
        """Take in one request that is done."""
        self._finished[request.finish_reason] += 1
        self._cached_tokens += request.num_cached_tokens
        self._time_per_output_token.observe(request.mean_time_per_output_token)
        self._e2e_latency.observe(request.e2e_latency)
        self._queue_time.observe(request.queue_time)
        self._prefill_time.observe(request.prefill_time)
        self._decode_time.observe(request.decode_time)
        self._inference_time.observe(request.inference_time)
        self._request_prompt_tokens.observe(request.num_prompt_tokens)
        self._request_generation_tokens.observe(request.num_generation_tokens)
        self._request_max_tokens.observe(request.max_tokens)
        self._request_n.observe(request.n)
        self._request_preemptions.observe(request.num_preemptions)

    # ---- asked by Prometheus ----

    def families(self) -> Iterator[Family]:
        """All metrics as they stand now.

        Gauges and counters of the scheduler are the engine's own, the same in every process that hears from it.
        """
        stats = self._stats
        yield self._gauge("vllm:num_requests_running", "Requests that are being computed.", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for their turn.", stats.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Used part of the KV cache; 1 is full.", stats.kv_cache_usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "The same under its older name.", stats.kv_cache_usage)
        yield self._engine_counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries
        )
        yield self._engine_counter("vllm:prefix_cache_hits", "Prompt tokens found there.", stats.prefix_cache_hits)
        yield self._engine_counter(
            "vllm:num_preemptions", "How often a running request had to give way.", stats.num_preemptions
        )
        yield self._counter("vllm:prompt_tokens", "Prompt tokens processed.", self._prompt_tokens)
        yield self._counter(
            "vllm:prompt_tokens_cached",
            "Prompt tokens of finished requests that came from a cache.",
            self._cached_tokens,
        )
        yield self._counter("vllm:generation_tokens", "Tokens generated.", self._generation_tokens)
        labels = (*_LABELS, "finished_reason")
        yield Family(
            "vllm:request_success_total",
            "counter",
            "Requests that are done, by reason.",
            "sum",
            {
                series_key("vllm:request_success_total", labels, (*self._labels, reason)): count
                for reason, count in self._finished.items()
            },
        )
        for name, text, histogram in self._histograms():
            yield Family(name, "histogram", text, "sum", histogram.series(name, _LABELS, self._labels))

    def _histograms(self) -> Iterator[tuple[str, str, Histogram]]:
        yield "vllm:iteration_tokens_total", "Tokens of one engine step.", self._step_tokens
        yield "vllm:time_to_first_token_seconds", "Seconds from arrival to first token.", self._time_to_first_token
        yield "vllm:inter_token_latency_seconds", "Seconds between tokens.", self._inter_token_latency
        yield "vllm:time_per_output_token_seconds", "The same under its older name.", self._inter_token_latency
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
        yield "vllm:request_generation_tokens", "Generated tokens of a request.", self._request_generation_tokens
        yield "vllm:request_params_max_tokens", "max_tokens of a request that has one.", self._request_max_tokens
        yield "vllm:request_params_n", "n of a request.", self._request_n
        yield "vllm:request_num_preemptions", "How often a request had to give way.", self._request_preemptions

    def _gauge(self, name: str, text: str, value: float) -> Family:
        return self._single(name, "gauge", text, "latest", value)

    def _counter(self, name: str, text: str, value: float) -> Family:
        return self._single(f"{name}_total", "counter", text, "sum", value)

    def _engine_counter(self, name: str, text: str, value: float) -> Family:
        return self._single(f"{name}_total", "counter", text, "max", value)

    def _single(self, name: str, kind: Kind, text: str, combine: Combine, value: float) -> Family:
        return Family(name, kind, text, combine, {series_key(name, _LABELS, self._labels): value})
