"""Numbers that depend on settings, model and machine together: lengths, budgets and the cache layout."""

from dataclasses import dataclass

from vllm_engine.config import EngineConfig
from vllm_engine.config.groups.model import AUTO
from vllm_engine.core.kv_cache.budget import amount, cache_budget
from vllm_engine.core.kv_cache.layout import (
    blocks_per_request,
    bytes_per_block,
    group_layers,
    longest_request,
    plan_layout,
)
from vllm_engine.errors import ConfigError
from vllm_engine.execution.executor import LoadedModel
from vllm_engine.execution.memory import DeviceMemory
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


def resolve_limits(config: EngineConfig, model: LoadedModel, memory: DeviceMemory) -> EngineLimits:
    """Fill in what was not set, and refuse what does not fit together.

    Args:
        config: the settings.
        model: what the worker says of the loaded model.
        memory: of the device, with the weights in it.

    Raises:
        ConfigError: naming the setting at fault and a value that works.
    """
    auto = config.model.max_model_len == AUTO
    max_model_len = model.max_model_len
    if auto and not config.scheduler.chunked_prefill:
        max_model_len = min(max_model_len, config.scheduler.max_num_batched_tokens or max_model_len)
    step_tokens, max_num_seqs = _step_limits(config, max_model_len)
    block_size = config.cache.block_size or DEFAULT_BLOCK_SIZE
    hybrid = not config.scheduler.disable_hybrid_kv_cache_manager
    groups = group_layers(model.kv_specs, hybrid=hybrid)
    block_bytes = bytes_per_block(model.kv_specs, groups, block_size)
    least = blocks_per_request(groups, block_size, 1 if auto else max_model_len, step_tokens)
    budget = cache_budget(config.cache, memory, needed=(least + 1) * block_bytes)
    if auto:
        num_blocks = config.cache.num_gpu_blocks_override or budget.num_bytes // block_bytes
        fitting = longest_request(groups, block_size, step_tokens, num_blocks - 1, max_model_len)
        if fitting:
            _log_fitting(fitting, model.max_model_len, num_blocks * block_bytes)
            max_model_len = fitting
            step_tokens, max_num_seqs = _step_limits(config, max_model_len)
    layout = plan_layout(
        model.kv_specs,
        block_size=block_size,
        memory_bytes=budget.num_bytes,
        memory_setting=budget.setting,
        max_model_len=max_model_len,
        max_step_tokens=step_tokens,
        max_num_seqs=max_num_seqs,
        num_blocks_override=config.cache.num_gpu_blocks_override,
        hybrid=hybrid,
    )
    cache_bytes = layout.num_blocks * block_bytes
    if cache_bytes > memory.free:
        raise ConfigError(
            f"the KV cache of {layout.num_blocks} blocks would take {amount(cache_bytes)}, but only "
            f"{amount(memory.free)} are free: set kv_cache_memory_bytes to less",
            field="kv_cache_memory_bytes",
        )
    reason = budget.reason
    if config.cache.num_gpu_blocks_override is not None:
        reason = "as num_gpu_blocks_override says"
    elif layout.num_blocks < budget.num_bytes // block_bytes:
        reason = f"all that {max_num_seqs} requests of full length can use"
    logger.info("KV cache: %s (%s)", amount(cache_bytes), reason)
    logger.info(
        "KV cache: %d blocks of %d tokens in %d group(s); max_model_len %d, up to %d requests and %d tokens a step",
        layout.num_blocks,
        layout.block_size,
        len(layout.groups),
        max_model_len,
        max_num_seqs,
        step_tokens,
    )
    return EngineLimits(max_model_len, step_tokens, max_num_seqs, layout)


def _step_limits(config: EngineConfig, max_model_len: int) -> tuple[int, int]:
    """Most tokens and most requests of a step. Errors: as of ``resolve_limits``."""
    scheduler = config.scheduler
    defaults = STEP_DEFAULTS[config.performance_mode]
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
    return budget, max_num_seqs


def _log_fitting(fitting: int, longest: int, cache_bytes: int) -> None:
    which = f"{fitting:,} tokens" if fitting < longest else f"all {longest:,} tokens of the model"
    of_which = f", of the model's {longest:,}" if fitting < longest else ""
    logger.info("max_model_len auto: %s fit into %s of KV cache%s", which, amount(cache_bytes), of_which)
