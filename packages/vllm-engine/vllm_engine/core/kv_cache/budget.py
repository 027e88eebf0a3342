"""How many bytes the KV cache may take, and which setting says so."""

import math

from vllm_engine import envs
from vllm_engine.config import CacheConfig
from vllm_engine.core.kv_cache.gpu_budget import CacheBudget, gpu_budget
from vllm_engine.errors import ConfigError
from vllm_engine.execution.memory import DeviceMemory, amount

FREE_MEMORY_SHARE = 0.5
"""Part of the free memory that the KV cache may take when nothing is said: other programs live on the machine too."""


def cache_budget(config: CacheConfig, memory: DeviceMemory, *, needed: int) -> CacheBudget:
    """``kv_cache_memory_bytes``, else ``VLLM_CPU_KVCACHE_SPACE``, else what the memory allows.

    On a CPU that is half of what is free, but no more than what ``gpu_memory_utilization`` leaves: with the cache full,
    this share of all memory may be in use. On a GPU, whose use was measured, it is this engine's own share, and what
    other processes have must fit beside it. ``num_gpu_blocks_override`` wins, so none of this is looked at then.

    Args:
        config: the settings.
        memory: of the device, with the weights in it.
        needed: bytes for one request, to propose a value that works.

    Raises:
        ConfigError: when more than ``gpu_memory_utilization`` is in use already.
    """
    if config.kv_cache_memory_bytes is not None:
        return CacheBudget(config.kv_cache_memory_bytes, "kv_cache_memory_bytes", "as kv_cache_memory_bytes says")
    if memory.use is not None:
        return gpu_budget(config.gpu_memory_utilization, memory.total, memory.use)
    space: float | None = envs.get("VLLM_CPU_KVCACHE_SPACE")
    if space is not None:
        return CacheBudget(int(space * 2**30), "VLLM_CPU_KVCACHE_SPACE", "as VLLM_CPU_KVCACHE_SPACE says")
    share = int(memory.free * FREE_MEMORY_SHARE)
    allowed = int(config.gpu_memory_utilization * memory.total) - memory.used
    if config.num_gpu_blocks_override is None and allowed <= 0:
        raise _nothing_left(config.gpu_memory_utilization, memory, needed, share)
    if allowed < share:
        reason = (
            f"gpu_memory_utilization {config.gpu_memory_utilization:g} of {amount(memory.total)}, less the "
            f"{amount(memory.used)} that are in use"
        )
        return CacheBudget(allowed, "gpu_memory_utilization", reason)
    return CacheBudget(share, "kv_cache_memory_bytes", f"half of the {amount(memory.free)} that are free")


def _nothing_left(utilization: float, memory: DeviceMemory, needed: int, share: int) -> ConfigError:
    enough = math.ceil((memory.used + needed) / memory.total * 100) / 100
    if enough <= 1 and needed <= share:
        way_out = f"{enough:g} is enough for one request, or set kv_cache_memory_bytes"
    elif needed <= memory.free:
        way_out = f"kv_cache_memory_bytes={needed} is enough for one request"
    else:
        way_out = f"one request takes {amount(needed)}: lower max_model_len, or free some memory"
    return ConfigError(
        f"gpu_memory_utilization={utilization:g} leaves nothing for the KV cache: it allows "
        f"{amount(int(utilization * memory.total))} of {amount(memory.total)}, but {amount(memory.used)} are in use, "
        f"{amount(memory.weights)} of them by the weights; {way_out}",
        field="gpu_memory_utilization",
    )
