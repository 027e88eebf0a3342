"""What the engine tells is what Prometheus reads."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.stats import RequestStats, StatLogger
from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.telemetry.histogram import Histogram, one_two_five
from vllm_server.telemetry.metrics import EngineMetrics
from vllm_server.telemetry.registry import Registry, new_registry
from vllm_server.telemetry.snapshot import Family, Snapshot, decode, encode, merge, render, series_key

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


def registry_of(metrics: EngineMetrics) -> Registry:
    registry = new_registry()
    registry.register(metrics)
    return registry


def samples(registry: Registry) -> dict[str, float]:
    """Value by name and, in brackets, the labels beside those that all have."""
    found = {}
    for family in text_string_to_metric_families(registry.page().decode()):
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
    assert histogram.series("h", ("m",), ("x",)) == {
        'h_bucket{m="x",le="1.0"}': 2,
        'h_bucket{m="x",le="2.0"}': 3,
        'h_bucket{m="x",le="5.0"}': 4,
        'h_bucket{m="x",le="+Inf"}': 5,
        'h_count{m="x"}': 5,
        'h_sum{m="x"}': 14,
    }


def test_the_ladder_climbs_by_one_two_five() -> None:
    assert one_two_five(0.01, 2) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]


def test_several_processes_are_added_up_and_the_newest_knows_the_engine() -> None:
    first, second, idle = EngineMetrics("m"), EngineMetrics("m"), EngineMetrics("m")
    first.on_step(SchedulerStats(2, 1, 0.5, 20, 5, 1, 1), 7, 1, times_to_first_token=[0.1])
    second.on_step(SchedulerStats(3, 0, 0.75, 30, 10, 2, 2), 5, 2, inter_token_latencies=[0.2, 0.3])
    first.on_finished(finished())
    second.on_finished(finished(finish_reason="length"))
    registries = [registry_of(metrics) for metrics in (second, first, idle)]
    alone = [registry.snapshot() for registry in registries]
    whole = merge([decode(encode(snapshot)) for snapshot in alone])

    class _Merged:
        moment = whole.moment

        def families(self) -> list[Family]:
            return whole.families

    found = samples(Registry([_Merged()]))
    assert (found["vllm:num_requests_running"], found["vllm:kv_cache_usage_perc"]) == (3, 0.75)
    assert (found["vllm:prefix_cache_queries_total"], found["vllm:num_preemptions_total"]) == (30, 2)
    assert (found["vllm:prompt_tokens_total"], found["vllm:generation_tokens_total"]) == (12, 3)
    assert found["vllm:request_success_total{'finished_reason': 'stop'}"] == 1
    assert found["vllm:request_success_total{'finished_reason': 'length'}"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 2
    assert found["vllm:e2e_request_latency_seconds_bucket{'le': '0.5'}"] == 2
    assert found["process_start_time_seconds"] < 1e10
    assert alone == [decode(encode(snapshot)) for snapshot in alone]  # as they were
    assert merge([]).families == []
    assert merge(alone).moment == alone[0].moment


def test_a_source_that_fails_takes_nothing_from_the_others() -> None:
    class Broken:
        moment = 0.0

        def families(self) -> list[Family]:
            raise ValueError("broken")

    found = samples(Registry([Broken(), EngineMetrics("m")]))
    assert found["vllm:num_requests_running"] == 0


def test_names_and_texts_are_escaped() -> None:
    key = series_key("x", ("model_name",), ('a"b\\c\nd\ud800',))
    page = render(Snapshot(0.0, [Family("x", "gauge", 'two\nlines \\ "q"', "sum", {key: float("nan")})])).decode()
    (family,) = text_string_to_metric_families(page)
    assert family.documentation == 'two\nlines \\ "q"'
    assert family.samples[0].labels == {"model_name": 'a"b\\c\nd?'}
    assert family.samples[0].value != family.samples[0].value
