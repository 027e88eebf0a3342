"""What the engine tells is what Prometheus reads."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import make_client, make_context
from tests.server.fake_llm import FakeLLM
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_engine.messages import EngineReady, SchedulerStats
from vllm_engine.metrics.buckets import bucket_bounds, one_two_five
from vllm_engine.metrics.deprecation import Version, is_shown
from vllm_engine.metrics.histogram import Histogram
from vllm_engine.metrics.stats import RequestStats, StatLogger
from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.telemetry.families import histogram_series
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


def described(**settings: Any) -> EngineMetrics:
    """The metrics of an engine with these settings that is ready."""
    config = EngineArgs("some/model", **settings).create_config()
    metrics = EngineMetrics("some/model", config)
    metrics.describe(config, EngineReady(2048, 100, 77, 16, {}))
    return metrics


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
            assert sample.value == (sample.labels.get("sleep_state") == "awake")


def test_counts_are_conserved() -> None:
    metrics = EngineMetrics("m")
    logger: StatLogger = metrics
    steps = Histogram(bucket_bounds()["iteration_tokens"])
    steps.observe_all([8, 2])
    logger.on_step(SchedulerStats(1, 4, 0.25, 20, 5, 1, 1), 7, 1, num_cached_tokens=4, times_to_first_token=[0.1])
    logger.on_step(SchedulerStats(1, 0, 0.5, 30, 10, 2, 2), 0, 2, inter_token_latencies=[0.2, 0.3])
    logger.on_step(SchedulerStats(0, 0, 0.0, 30, 10, 2, 3, num_corrupted=1, step_tokens=steps.counts()), 0, 0)
    logger.on_finished(finished(max_num_generation_tokens=3))
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
    assert found["vllm:prompt_tokens_cached_by_source_total{'source': 'device'}"] == 4
    assert found["vllm:prompt_tokens_by_source_total{'source': 'local_compute'}"] == 3
    assert found["vllm:prompt_tokens_by_source_total{'source': 'local_cache_hit'}"] == 4
    assert found["vllm:corrupted_requests_total"] == 1
    assert found["vllm:request_max_num_generation_tokens_sum"] == 3
    assert found["vllm:request_prefill_kv_computed_tokens_sum"] == 10
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
    assert histogram_series("h", {"m": "x"}, histogram) == {
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


def test_the_settings_of_the_cache_are_labels() -> None:
    page = registry_of(described(kv_cache_dtype="fp8")).page().decode()
    (family,) = [one for one in text_string_to_metric_families(page) if one.name == "vllm:cache_config_info"]
    (sample,) = family.samples
    assert sample.value == 1
    shown = {"block_size": "16", "num_gpu_blocks": "77", "cache_dtype": "fp8", "enable_prefix_caching": "True"}
    assert shown.items() <= sample.labels.items()
    assert {"gpu_memory_utilization", "prefix_caching_hash_algo", "engine"} <= sample.labels.keys()


def test_asleep_requests_wait_for_something_else_than_room() -> None:
    metrics = EngineMetrics("m")
    for level, awake, offloaded, discarded in ((None, 1, 0, 0), (0, 0, 0, 0), (1, 0, 1, 0), (2, 0, 0, 1)):
        metrics.on_step(SchedulerStats(0, 3, sleep_level=level), 0, 0)
        found = samples(registry_of(metrics))
        assert found["vllm:engine_sleep_state{'sleep_state': 'awake'}"] == awake
        assert found["vllm:engine_sleep_state{'sleep_state': 'weights_offloaded'}"] == offloaded
        assert found["vllm:engine_sleep_state{'sleep_state': 'discard_all'}"] == discarded
        assert found["vllm:num_requests_waiting_by_reason{'reason': 'capacity'}"] == 3 * awake
        assert found["vllm:num_requests_waiting_by_reason{'reason': 'deferred'}"] == 3 * (1 - awake)


BOUNDS_OF_DASHBOARDS = {
    "vllm:e2e_request_latency_seconds": "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680",
    "vllm:time_to_first_token_seconds": (
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
    ),
    "vllm:inter_token_latency_seconds": ("0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"),
    "vllm:iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "vllm:request_params_n": "1 2 5 10 20",
    "vllm:request_prompt_tokens": "1 2 5 10 20 50 100 200 500 1000 2000",
}
"""Bounds that queries of dashboards for vLLM name; those of token counts go up to the model's length, here 2048."""


def bounds_of(metrics: EngineMetrics) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for family in metrics.families():
        for key in family.series:
            if "_bucket{" in key and "+Inf" not in key:
                found.setdefault(family.name, []).append(float(key.split('le="')[1].split('"')[0]))
    return found


def test_buckets_have_the_bounds_that_dashboards_name() -> None:
    found = bounds_of(described())
    for name, bounds in BOUNDS_OF_DASHBOARDS.items():
        assert set(map(float, bounds.split())) <= set(found[name])
    assert all(bounds == sorted(set(bounds)) for bounds in found.values())
    assert max(found["vllm:request_generation_tokens"]) == 2000


def test_buckets_can_be_chosen_by_family() -> None:
    metrics = described(custom_histogram_buckets={"request_tokens": [3, 4.5], "inter_token_latency": [0.5]})
    found = bounds_of(metrics)
    assert found["vllm:request_prompt_tokens"] == found["vllm:request_params_max_tokens"] == [3, 4.5]
    assert found["vllm:inter_token_latency_seconds"] == found["vllm:time_per_output_token_seconds"] == [0.5]
    assert found["vllm:request_params_n"] == [1, 2, 5, 10, 20]
    for wrong in ({"no_family": [1]}, {"request_tokens": []}, {"request_tokens": [2, 1]}, {"request_tokens": [-1]}):
        with pytest.raises(ConfigError) as error:
            described(custom_histogram_buckets=wrong)
        assert error.value.field == "custom_histogram_buckets"


GONE = """
    vllm:num_requests_swapped vllm:cpu_cache_usage_perc vllm:cpu_prefix_cache_hit_rate vllm:gpu_prefix_cache_hit_rate
    vllm:time_in_queue_requests vllm:model_forward_time_milliseconds vllm:model_execute_time_milliseconds
""".split()
"""Deprecated by the documents."""


def test_hidden_metrics_are_shown_for_one_version_more() -> None:
    for version, shown in ((None, False), ("0.1", True), ("0.0", True), ("v0.1.0", True)):
        metrics = described(show_hidden_metrics_for_version=version)
        metrics.on_step(SchedulerStats(1, 0, 0.5, 20, 5), 0, 0)
        metrics.on_finished(finished(inference_time=0.7))
        found = samples(registry_of(metrics))
        names = {name.split("{")[0].removesuffix("_count") for name in found}
        assert names & set(GONE) == (set(GONE) if shown else set())
        if shown:
            assert found["vllm:gpu_prefix_cache_hit_rate"] == 0.25
            assert found["vllm:time_in_queue_requests_sum"] == found["vllm:request_queue_time_seconds_sum"] == 0.02
            assert found["vllm:model_forward_time_milliseconds_sum"] == pytest.approx(700)
            assert found["vllm:model_forward_time_milliseconds_bucket{'le': '800.0'}"] == 1
            assert found["vllm:model_forward_time_milliseconds_bucket{'le': '500.0'}"] == 0
        assert found["vllm:gpu_cache_usage_perc"] == found["vllm:kv_cache_usage_perc"] == 0.5
        assert found["vllm:gpu_prefix_cache_hits_total"] == found["vllm:prefix_cache_hits_total"] == 5
    for wrong in ("0.7", "soon", "", "0"):
        with pytest.raises(ConfigError) as error:
            described(show_hidden_metrics_for_version=wrong)
        assert error.value.field == "show_hidden_metrics_for_version"


def test_a_metric_is_deprecated_hidden_and_removed_in_three_versions() -> None:
    """0.1 deprecates it, 0.2 hides it, 0.3 has it no more."""
    name = "vllm:gpu_cache_usage_perc"
    for current, escape, shown in (
        ("0.1.5", None, True),
        ("0.2.0", None, False),
        ("0.2.0", "0.1", True),
        ("0.2.0", "0.2", True),
        ("0.2.0", "0.0", False),
        ("0.3.0", "0.1", False),
        ("0.3.0", "0.2", False),
        ("1.0.0", "0.2", False),
    ):
        assert is_shown(name, escape, current=Version.of(current)) == shown, (current, escape)
    assert is_shown("vllm:num_requests_running", current=Version.of("9.9"))


def documented() -> dict[str, bool]:
    """The metrics of the documents, and whether each is deprecated."""
    table = json.loads((Path(__file__).parents[1] / "settings" / "spec" / "metrics.json").read_text())
    return {metric["name"]: metric["deprecated"] for metric in table["metrics"]}


def test_every_documented_metric_is_there_or_belongs_to_what_is_not() -> None:
    without = {name for name in documented() if "lora" in name or "spec_decode" in name}
    page = {family.name for family in described().families()}
    every = {family.name for family in described(show_hidden_metrics_for_version="0.1").families()}
    assert {name for name, deprecated in documented().items() if not deprecated} - without <= page
    assert set(documented()) - without <= every
    assert {name for name, deprecated in documented().items() if deprecated} == set(GONE)


async def test_requests_are_counted_by_route_status_and_method() -> None:
    context = make_context(FakeLLM(), api_key=["key"])
    headers = {"authorization": "Bearer key"}
    async with make_client(build_app(context)) as client:
        whole = await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        body = {"prompt": "x", "stream": True}
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as stream:
            streamed = b"".join([part async for part in stream.aiter_raw()])
        bad = await client.post("/v1/completions", json={}, headers=headers)
        await client.post("/v1/completions", json={"prompt": "x"})
        await client.get("/v1/models/fake", headers=headers)
        await client.get("/v1/models/other", headers=headers)
        await client.get("/nowhere", headers=headers)
        await client.request("BREW", "/v1/models", headers=headers)
        for path in ("/health", "/livez", "/readyz", "/ping", "/version", "/metrics"):
            await client.get(path, headers=headers)
        page = (await client.get("/metrics", headers=headers)).text
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.values())] = sample.value
    assert {key[1:]: value for key, value in found.items() if key[0] == "http_requests_total"} == {
        ("/v1/completions", "2xx", "POST"): 2,
        ("/v1/completions", "4xx", "POST"): 1,
        ("4xx", "POST", "none"): 1,
        ("/v1/models/{name:path}", "2xx", "GET"): 1,
        ("/v1/models/{name:path}", "4xx", "GET"): 1,
        ("4xx", "GET", "none"): 1,
        ("/v1/models", "4xx", "other"): 1,
    }
    answers = len(whole.content) + len(streamed) + len(bad.content)
    assert found["http_response_size_bytes_sum", "/v1/completions"] == answers
    assert found["http_response_size_bytes_count", "/v1/completions"] == 3
    sent = [json.dumps(one, separators=(",", ":")) for one in ({"prompt": "x"}, body, {})]
    assert found["http_request_size_bytes_sum", "/v1/completions"] == sum(map(len, sent))
    assert found["http_request_duration_highr_seconds_count",] == 8
    assert found["http_request_duration_highr_seconds_bucket", "60.0"] == 8
    assert found["http_request_duration_seconds_count", "/v1/completions", "POST"] == 3
    assert found["http_request_duration_seconds_bucket", "/v1/completions", "0.5", "POST"] <= 3


async def test_falling_asleep_is_timed_where_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    llm = FakeLLM()
    llm.config = EngineArgs("fake/model", enable_sleep_mode=True).create_config()
    context = make_context(llm)
    async with make_client(build_app(context)) as client:
        for path in ("/sleep", "/wake_up", "/sleep", "/release_kv_cache_memory"):
            assert (await client.post(path)).status_code == 200
    found = samples(context.registry)
    assert found["vllm:sleep_mode_operation_duration_seconds_count{'operation': 'sleep'}"] == 2
    assert found["vllm:sleep_mode_operation_duration_seconds_count{'operation': 'wake_up'}"] == 1
    assert found["vllm:sleep_mode_operation_duration_seconds_count{'operation': 'release_kv_cache_memory'}"] == 1
    assert found["vllm:sleep_mode_operations_in_flight{'operation': 'sleep'}"] == 0
    assert not any("sleep_mode" in name for name in samples(make_context(FakeLLM()).registry))


def test_a_page_is_cheap() -> None:
    """Half a millisecond on a quiet machine; ten leave room for a busy one."""
    registry = registry_of(described())
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        page = registry.page()
        seconds.append(time.perf_counter() - started)
    assert len(page) > 10_000 and min(seconds) < 0.01
