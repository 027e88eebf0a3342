"""Numbers that depend on settings, model and machine together: lengths, budgets and the cache layout."""

from dataclasses import dataclass

from vllm_engine.config import EngineConfig
from vllm_engine.core.kv_cache.layout import bytes_per_block, plan_layout
from vllm_engine.errors import ConfigError
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.kv_layout import KVCacheLayout
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class StepDefaults:
    """What a step takes when nothing is said."""

    max_num_batched_tokens: int
    max_num_seqs: int


STEP_DEFAULTS = {
    "balanced": StepDefaults(2048, 256),
    "throughput": StepDefaults(4096, 512),
    "interactivity": StepDefaults(512, 256),
}
"""By ``performance_mode``. A step with many tokens of prompts is efficient, and everyone waits for it to end."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What this engine can take: tokens of one request, tokens and requests of one step, blocks of the cache."""

    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    layout: KVCacheLayout


def resolve_limits(
    config: EngineConfig, model: LoadedModel, *, available_memory: int, free_memory: int
) -> EngineLimits:
    """Fill in what was not set, and refuse what does not fit together.

    Args:
        config: the settings.
        model: what the worker says of the loaded model.
        available_memory: bytes that the KV cache may take when nothing is said.
        free_memory: bytes that are there at all.

    Raises:
        ConfigError: naming the setting at fault and a value that works.
    """
    scheduler = config.scheduler
    defaults = STEP_DEFAULTS[config.performance_mode]
    max_model_len = model.max_model_len
    max_num_seqs = scheduler.max_num_seqs or defaults.max_num_seqs
    budget = scheduler.max_num_batched_tokens
    if not scheduler.chunked_prefill:
        budget = budget or max(max_model_len, defaults.max_num_batched_tokens)
        if budget < max_model_len:
            raise ConfigError(
                f"without chunked prefill, max_num_batched_tokens ({budget}) must be at least max_model_len "
                f"({max_model_len})",
                field="max_num_batched_tokens",
            )
        if scheduler.long_prefill_token_threshold:
            raise ConfigError(
                "long_prefill_token_threshold needs chunked prefill, which is off", field="long_prefill_token_threshold"
            )
    budget = budget or max(defaults.max_num_batched_tokens, max_num_seqs)
    if scheduler.max_num_seqs is None:
        max_num_seqs = min(max_num_seqs, budget)
    if budget < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({max_num_seqs}): "
            "every running request needs a token a step",
            field="max_num_batched_tokens",
        )
    layout = plan_layout(
        model.kv_specs,
        block_size=config.cache.block_size or DEFAULT_BLOCK_SIZE,
        memory_bytes=config.cache.kv_cache_memory_bytes or available_memory,
        max_model_len=max_model_len,
        max_step_tokens=budget,
        max_num_seqs=max_num_seqs,
        num_blocks_override=config.cache.num_gpu_blocks_override,
        hybrid=not scheduler.disable_hybrid_kv_cache_manager,
    )
    cache_bytes = layout.num_blocks * bytes_per_block(model.kv_specs, layout.groups, layout.block_size)
    if cache_bytes > free_memory:
        raise ConfigError(
            f"the KV cache of {layout.num_blocks} blocks would take {cache_bytes / 2**30:.1f} GiB, "
            f"but only {free_memory / 2**30:.1f} GiB are free: set kv_cache_memory_bytes to less",
            field="kv_cache_memory_bytes",
        )
    logger.info(
        "KV cache: %d blocks of %d tokens in %d group(s); max_model_len %d, up to %d requests and %d tokens a step",
        layout.num_blocks,
        layout.block_size,
        len(layout.groups),
        max_model_len,
        max_num_seqs,
        budget,
    )
    return EngineLimits(max_model_len, budget, max_num_seqs, layout)
