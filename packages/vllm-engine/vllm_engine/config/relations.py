"""Settings that must fit together, as far as the settings alone can tell; the rest is checked with the loaded model."""

import math
from itertools import pairwise

from vllm_engine.config.compiler import check_compiler
from vllm_engine.config.graph_plan import check_graphs
from vllm_engine.config.groups import EngineConfig
from vllm_engine.config.groups.observability import ObservabilityConfig
from vllm_engine.config.kernel_choices import kernel_faces
from vllm_engine.config.load_formats import check_load_format
from vllm_engine.config.profiling import profiler_in_force
from vllm_engine.errors import ConfigError
from vllm_engine.metrics.buckets import FAMILIES
from vllm_engine.metrics.deprecation import check_shown_for


def check_relations(config: EngineConfig) -> None:
    """Raise ``ConfigError`` for the first pair of settings that cannot both hold."""
    _check_step_limits(config)
    _check_partial_prefills(config)
    check_load_format(config.load)
    profiler_in_force(config.profiler)
    kernel_faces(config)
    check_compiler(config)
    check_graphs(config)
    _check_metrics(config.observability)
    if config.model.max_model_len == 0:
        raise ConfigError("max_model_len must be a whole number of at least 1, or auto, got 0", field="max_model_len")
    if config.model.skip_tokenizer_init and config.model.tokenizer is not None:
        raise ConfigError("skip_tokenizer_init and tokenizer exclude each other", field="skip_tokenizer_init")


def _check_step_limits(config: EngineConfig) -> None:
    scheduler, max_model_len = config.scheduler, config.model.max_model_len or 0
    budget, max_num_seqs = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    if budget is not None and max_num_seqs is not None and budget < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({max_num_seqs}): "
            "every running request needs a token a step",
            field="max_num_batched_tokens",
        )
    if not scheduler.chunked_prefill and budget is not None and budget < max_model_len:
        raise ConfigError(
            f"without chunked prefill, max_num_batched_tokens ({budget}) must be at least max_model_len "
            f"({max_model_len})",
            field="max_num_batched_tokens",
        )


def _check_partial_prefills(config: EngineConfig) -> None:
    scheduler = config.scheduler
    if scheduler.max_long_partial_prefills > scheduler.max_num_partial_prefills:
        raise ConfigError(
            f"max_long_partial_prefills ({scheduler.max_long_partial_prefills}) must be at most "
            f"max_num_partial_prefills ({scheduler.max_num_partial_prefills})",
            field="max_long_partial_prefills",
        )
    if not scheduler.chunked_prefill:
        for name in ("long_prefill_token_threshold", "max_num_partial_prefills"):
            if getattr(scheduler, name) > (1 if name == "max_num_partial_prefills" else 0):
                raise ConfigError(f"{name} needs chunked prefill, which is off", field=name)


def _check_metrics(observability: ObservabilityConfig) -> None:
    if observability.show_hidden_metrics_for_version is not None:
        check_shown_for(observability.show_hidden_metrics_for_version)
    default = ObservabilityConfig.kv_cache_metrics_sample
    if not observability.kv_cache_metrics and observability.kv_cache_metrics_sample != default:
        message = "kv_cache_metrics_sample needs kv_cache_metrics, which is off"
        raise ConfigError(message, field="kv_cache_metrics_sample")
    for family, bounds in observability.custom_histogram_buckets.items():
        if family not in FAMILIES:
            raise ConfigError(
                f"custom_histogram_buckets: there is no family {family!r}; families: {', '.join(FAMILIES)}",
                field="custom_histogram_buckets",
            )
        ascending = all(lower < upper for lower, upper in pairwise(bounds))
        if not bounds or not ascending or bounds[0] < 0 or not all(map(math.isfinite, bounds)):
            raise ConfigError(
                f"custom_histogram_buckets: the bounds of {family} must ascend, from 0 or more, and be finite",
                field="custom_histogram_buckets",
            )
