"""What the engine tells is what Prometheus reads."""

import httpx
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.stats import RequestStats, StatLogger
from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.telemetry.histogram import Histogram, one_two_five
from vllm_server.telemetry.metrics import EngineMetrics, new_registry

NAMES = """
    vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:prefix_cache_queries_total
    vllm:prefix_cache_hits_total vllm:num_preemptions_total vllm:prompt_tokens_total vllm:generation_tokens_total
    vllm:request_success_total vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
    vllm:e2e_request_latency_seconds_bucket vllm:request_queue_time_seconds_bucket
    vllm:request_prefill_time_seconds_bucket vllm:request_decode_time_seconds_bucket
    vllm:request_inference_time_seconds_bucket vllm:request_prompt_tokens_bucket
    vllm:request_generation_tokens_bucket vllm:iteration_tokens_total_bucket vllm:request_params_n_bucket
    vllm:request_params_max_tokens_bucket vllm:time_per_output_token_seconds_bucket vllm:gpu_cache_usage_perc
""".split()


def finished(**changes: object) -> RequestStats:
    fields = {
        "request_id": "r",
        "finish_reason": "stop",
        "num_prompt_tokens": 7,
        "num_generation_tokens": 3,
        "num_cached_tokens": 2,
        "num_preemptions": 0,
        "n": 1,
        "max_tokens": None,
        "e2e_latency": 0.5,
        "time_to_first_token": 0.1,
        "queue_time": 0.02,
        "prefill_time": 0.08,
        "decode_time": 0.4,
        "inference_time": 0.48,
        "inter_token_latencies": (0.2, 0.2),
    }
    return RequestStats(**{**fields, **changes})  # type: ignore[arg-type]


def registry_of(metrics: EngineMetrics) -> CollectorRegistry:
    registry = new_registry()
    registry.register(metrics)
    return registry


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Value by name and, in brackets, the labels beside those that all have."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            extra = {key: value for key, value in sample.labels.items() if key not in ("model_name", "engine")}
            found[sample.name + (str(extra) if extra else "")] = sample.value
    return found


async def read(metrics: EngineMetrics) -> httpx.Response:
    base = make_context(FakeLLM())
    context = ServerContext(llm=base.llm, config=base.config, chat_template=None, registry=registry_of(metrics))
    async with make_client(build_app(context)) as client:
        return await client.get("/metrics")


async def test_the_page_has_every_name_from_the_start_with_the_usual_labels() -> None:
    response = await read(EngineMetrics("some/model"))
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    names = {sample.name for sample in found}
    assert set(NAMES) <= names
    assert "process_resident_memory_bytes" in names
    for sample in found:
        if sample.name.startswith("vllm:"):
            assert (sample.labels["model_name"], sample.labels["engine"]) == ("some/model", "0")
            assert sample.value == 0


def test_counts_are_conserved() -> None:
    metrics = EngineMetrics("m")
    logger: StatLogger = metrics
    logger.on_step(SchedulerStats(1, 4, 0.25, 20, 5, 1, 1), 7, 1, times_to_first_token=[0.1])
    logger.on_step(SchedulerStats(1, 0, 0.5, 30, 10, 2, 2), 0, 2, inter_token_latencies=[0.2, 0.3])
    logger.on_step(SchedulerStats(0, 0, 0.0, 30, 10, 2, 3), 0, 0)
    logger.on_finished(finished())
    logger.on_finished(finished(finish_reason="abort", n=3, max_tokens=9, queue_time=None, inter_token_latencies=()))
    found = samples(registry_of(metrics))
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:prefix_cache_queries_total"] == 30
    assert found["vllm:prefix_cache_hits_total"] == 10
    assert found["vllm:num_preemptions_total"] == 2
    assert found["vllm:prompt_tokens_total"] == 7
    assert found["vllm:generation_tokens_total"] == 3
    assert found["vllm:prompt_tokens_cached_total"] == 4
    assert found["vllm:request_success_total{'finished_reason': 'stop'}"] == 1
    assert found["vllm:request_success_total{'finished_reason': 'abort'}"] == 1
    assert found["vllm:request_success_total{'finished_reason': 'error'}"] == 0
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 2
    assert found["vllm:inter_token_latency_seconds_sum"] == 0.5
    assert found["vllm:iteration_tokens_total_count"] == 2
    assert found["vllm:iteration_tokens_total_sum"] == 10
    assert found["vllm:e2e_request_latency_seconds_count"] == 2
    assert found["vllm:request_queue_time_seconds_count"] == 1
    assert found["vllm:request_time_per_output_token_seconds_count"] == 1
    assert found["vllm:request_params_n_sum"] == 4
    assert found["vllm:request_params_max_tokens_count"] == 1
    assert found["vllm:request_prompt_tokens_sum"] == 14


def test_a_bucket_counts_what_is_at_most_its_bound() -> None:
    histogram = Histogram([1, 2, 5])
    histogram.observe_all([0.5, 1, 1.5, 5, 6])
    histogram.observe(None)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("5.0", 4), ("+Inf", 5)]
    assert histogram.sum == 14


def test_the_ladder_climbs_by_one_two_five() -> None:
    assert one_two_five(0.01, 2) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
