"""Numbers that depend on settings, model and machine together: lengths, budgets and the cache layout."""

import dataclasses
from dataclasses import dataclass

from vllm_engine.config import EngineConfig
from vllm_engine.config.groups.model import AUTO
from vllm_engine.core.kv_cache.budget import cache_budget
from vllm_engine.core.kv_cache.gpu_budget import CacheBudget, no_room, sums
from vllm_engine.core.kv_cache.layout import (
    blocks_per_request,
    bytes_per_block,
    group_layers,
    longest_request,
    plan_layout,
)
from vllm_engine.errors import ConfigError
from vllm_engine.execution.executor import LoadedModel, UniExecutor
from vllm_engine.execution.memory import DeviceMemory, NoRoom, amount
from vllm_engine.kv_layout import KVCacheLayout, KVGroup
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

DEFAULT_BLOCK_SIZE = 16
LARGE_GPU = 70 * 2**30
"""Bytes from which on a GPU has so much memory, and computes so fast, that more tokens and requests a step pay."""


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

LARGE_GPU_DEFAULTS = {
    "balanced": StepDefaults(8192, 512),
    "throughput": StepDefaults(16384, 1024),
    "interactivity": StepDefaults(2048, 256),
}
"""The same on a GPU with at least ``LARGE_GPU``."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What this engine can take: tokens of one request, tokens and requests of one step, blocks of the cache."""

    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    layout: KVCacheLayout


def find_limits(config: EngineConfig, model: LoadedModel, executor: UniExecutor) -> EngineLimits:
    """``resolve_limits`` for the memory of the executor's device, where needed as the largest step leaves it.

    Raises:
        ConfigError: as ``resolve_limits``; on a GPU also where the largest step does not fit beside the weights.
    """
    if config.cache.kv_cache_memory_bytes is not None or config.cache.num_gpu_blocks_override is not None:
        return resolve_limits(config, model, executor.memory())
    try:
        return resolve_limits(config, model, _profile(config, model, executor))
    except NoRoom as error:
        if error.solved:
            raise
        problem = str(error)
    works = _smaller_step(config, model, executor)
    raise ConfigError(f"{problem}: {works}", field="max_num_batched_tokens")


def _profile(config: EngineConfig, model: LoadedModel, executor: UniExecutor) -> DeviceMemory:
    """The memory with the largest step that the settings allow. Raises ``NoRoom`` where that does not fit."""
    longest = _longest(config, model)
    step_tokens, max_num_seqs = _step_limits(config, longest, executor.memory())
    layout = KVCacheLayout(1, _block_size(config), _groups(config, model))
    return executor.profile(
        layout, max_num_batched_tokens=step_tokens, max_num_seqs=max_num_seqs, max_model_len=longest
    )


def _smaller_step(config: EngineConfig, model: LoadedModel, executor: UniExecutor) -> str:
    """Settings that work where the largest step leaves too little, found by trying."""
    step_tokens, max_num_seqs = _step_limits(config, _longest(config, model), executor.memory())
    while step_tokens > 1:
        step_tokens //= 2
        fewer = min(max_num_seqs, step_tokens)
        scheduler = dataclasses.replace(config.scheduler, max_num_batched_tokens=step_tokens, max_num_seqs=fewer)
        smaller = dataclasses.replace(config, scheduler=scheduler)
        try:
            _resolve(smaller, model, _profile(smaller, model, executor))
        except NoRoom as error:
            if error.solved:  # there is room for a cache, if only for a small one
                return f"lower max_num_batched_tokens to {step_tokens}, and {str(error).rpartition(': ')[2]}"
        except ConfigError:  # prompts that are not divided need as many tokens a step
            break
        else:
            seqs = f" with max_num_seqs={fewer}" if fewer < max_num_seqs else ""
            return f"max_num_batched_tokens={step_tokens}{seqs} is small enough"
    return "no smaller step makes room: quantization makes the weights smaller, or another process must give way"


def resolve_limits(config: EngineConfig, model: LoadedModel, memory: DeviceMemory) -> EngineLimits:
    """Fill in what was not set, and refuse what does not fit together.

    Args:
        config: the settings.
        model: what the worker says of the loaded model.
        memory: of the device, with the weights in it.

    Raises:
        ConfigError: naming the setting at fault and a value that works.
    """
    limits, budget, block_bytes = _resolve(config, model, memory)
    layout = limits.layout
    cache_bytes = layout.num_blocks * block_bytes
    if config.model.max_model_len == AUTO:
        num_blocks = config.cache.num_gpu_blocks_override or budget.num_bytes // block_bytes
        _log_fitting(limits.max_model_len, model.max_model_len, num_blocks * block_bytes)
    reason = budget.reason
    if config.cache.num_gpu_blocks_override is not None:
        reason = "as num_gpu_blocks_override says"
    elif layout.num_blocks < budget.num_bytes // block_bytes:
        reason = f"all that {limits.max_num_seqs} requests of full length can use"
    if memory.use is not None:
        logger.info("memory: %s", sums(config.cache.gpu_memory_utilization, memory.total, memory.use, cache_bytes))
    logger.info("KV cache: %s (%s)", amount(cache_bytes), reason)
    logger.info(
        "KV cache: %d blocks of %d tokens in %d group(s); max_model_len %d, up to %d requests and %d tokens a step",
        layout.num_blocks,
        layout.block_size,
        len(layout.groups),
        limits.max_model_len,
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
    )
    return limits


def _resolve(config: EngineConfig, model: LoadedModel, memory: DeviceMemory) -> tuple[EngineLimits, CacheBudget, int]:
    """``resolve_limits`` without a word in the log; with the budget of the cache and the bytes of a block."""
    auto = config.model.max_model_len == AUTO
    max_model_len = _longest(config, model)
    step_tokens, max_num_seqs = _step_limits(config, max_model_len, memory)
    block_size, groups = _block_size(config), _groups(config, model)
    block_bytes = bytes_per_block(model.kv_specs, groups, block_size)
    asked = 1 if auto else max_model_len
    needed = (blocks_per_request(groups, block_size, asked, step_tokens) + 1) * block_bytes
    budget = cache_budget(config.cache, memory, needed=needed)
    num_blocks = config.cache.num_gpu_blocks_override or budget.num_bytes // block_bytes
    fitting = longest_request(groups, block_size, step_tokens, num_blocks - 1, max_model_len)
    if memory.use is not None and config.cache.kv_cache_memory_bytes is None and fitting < asked:
        raise no_room(config.cache.gpu_memory_utilization, memory, needed, asked, fitting)
    if auto and fitting:
        max_model_len = fitting
        step_tokens, max_num_seqs = _step_limits(config, max_model_len, memory)
    layout = plan_layout(
        groups,
        block_size=block_size,
        block_bytes=block_bytes,
        memory_bytes=budget.num_bytes,
        memory_setting=budget.setting,
        max_model_len=max_model_len,
        max_step_tokens=step_tokens,
        max_num_seqs=max_num_seqs,
        num_blocks_override=config.cache.num_gpu_blocks_override,
    )
    cache_bytes = layout.num_blocks * block_bytes
    if cache_bytes > memory.free:
        raise ConfigError(
            f"the KV cache of {layout.num_blocks} blocks would take {amount(cache_bytes)}, but only "
            f"{amount(memory.free)} are free: set kv_cache_memory_bytes to less",
            field="kv_cache_memory_bytes",
        )
    return EngineLimits(max_model_len, step_tokens, max_num_seqs, layout), budget, block_bytes


def _block_size(config: EngineConfig) -> int:
    return config.cache.block_size or DEFAULT_BLOCK_SIZE


def _groups(config: EngineConfig, model: LoadedModel) -> tuple[KVGroup, ...]:
    return group_layers(model.kv_specs, hybrid=not config.scheduler.disable_hybrid_kv_cache_manager)


def _longest(config: EngineConfig, model: LoadedModel) -> int:
    """The longest request as far as the memory allows: with ``auto``, one that a step takes where it must."""
    longest = model.max_model_len
    if config.model.max_model_len == AUTO and not config.scheduler.chunked_prefill:
        longest = min(longest, config.scheduler.max_num_batched_tokens or longest)
    return longest


def _step_limits(config: EngineConfig, max_model_len: int, memory: DeviceMemory) -> tuple[int, int]:
    """Most tokens and most requests of a step. Errors: as of ``resolve_limits``."""
    scheduler = config.scheduler
    large = config.device.kind == "cuda" and memory.total >= LARGE_GPU
    defaults = (LARGE_GPU_DEFAULTS if large else STEP_DEFAULTS)[config.performance_mode]
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
