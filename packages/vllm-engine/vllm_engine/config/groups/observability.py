"""Metrics and traces."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from vllm_engine.config.option import option

_NO_DETAILS = "model and worker compute many requests at once; spans tell queue, prefill and decode of each"


@dataclass(frozen=True, kw_only=True)
class ObservabilityConfig:
    """What the engine tells about itself."""

    show_hidden_metrics_for_version: str | None = option(
        None,
        help="show the deprecated metrics that are hidden since this version, such as 0.1, or were last shown in it",
        metavar="VERSION",
    )
    custom_histogram_buckets: dict[str, list[float]] = option(
        {},
        help="upper bounds of histograms, by family: request_latency, time_to_first_token, inter_token_latency, "
        "iteration_tokens, request_params_n, request_num_preemptions, request_tokens, kv_cache_residency",
    )
    otlp_traces_endpoint: str | None = option(
        None,
        help="URL to which vllm serve and run-batch send OpenTelemetry traces, such as http://localhost:4317; by the "
        "protocol in OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, grpc or http/protobuf",
        metavar="URL",
    )
    collect_detailed_traces: list[Literal["all", "model", "worker"]] | None = option(
        None, help="parts of the engine to trace in detail", unsupported=_NO_DETAILS, commas=True
    )
    kv_cache_metrics: bool = option(
        False, help="metrics of the life of KV blocks: how long they stay, and when they are used again"
    )
    kv_cache_metrics_sample: Annotated[float, Meta(gt=0.0, le=1.0)] = option(
        0.01, help="share of KV blocks to follow, with kv_cache_metrics"
    )
    cudagraph_metrics: bool = option(
        False,
        help="log every ten seconds how many steps were replayed as graphs, of which sizes, and with how much padding",
    )
    enable_layerwise_nvtx_tracing: bool = option(
        False,
        help="NVTX ranges around layers",
        unsupported="this version marks no layers for NVIDIA's tools; see --profiler-config",
    )
    enable_mfu_metrics: bool = option(
        False, help="metrics of arithmetic and memory traffic", unsupported="this version does not count operations"
    )
    enable_logging_iteration_details: bool = option(False, help="log what each step of the engine did")
