"""The kernels that Triton's interpreter takes longest for, by those of the CPU on the GPU's memory.

As kernels do, they read lengths, tables and slots of the GPU's memory when they run, and a graph notes them down. Not
sampling, which nobody captures.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.simulated_gpu.torch_cuda import call_on_gpu, on_cpu, to_gpu
from vllm_kernels.cpu import attention as cpu_attention
from vllm_kernels.cpu import rotary as cpu_rotary
from vllm_kernels.cpu import sampling as cpu_sampling
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.triton import attention, rotary, sampling

_OF_SAMPLING = (
    *("apply_penalties", "apply_bias", "mask_tokens", "keep_tokens"),
    *("greedy", "sample", "filter_logits", "top_logprobs"),
)


_paged_attention = attention.paged_attention
_rope_and_cache = rotary.rope_and_cache


def install() -> None:
    """Serve attention, rotation and sampling by these."""
    attention.paged_attention = paged_attention
    rotary.rope_and_cache = rope_and_cache
    for name in _OF_SAMPLING:
        setattr(sampling, name, _by_the_cpu(getattr(cpu_sampling, name), getattr(sampling, name)))


def _by_the_cpu(function: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    @torch.inference_mode()
    def call(*arguments: Any) -> Any:
        if not arguments[0].is_cuda:
            return otherwise(*arguments)
        if any(isinstance(value, torch.Tensor) and not value.is_cuda for value in arguments):
            raise ValueError(f"{function.__name__} was given a tensor of main memory")
        result = function(*(_seen(value) if isinstance(value, torch.Tensor) else value for value in arguments))
        if isinstance(result, torch.Tensor):
            return to_gpu(result)
        return None if result is None else tuple(to_gpu(value) for value in result)

    return call


def _seen(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else on_cpu(tensor)


def _seen_cache(cache: KVCache) -> KVCache:
    seen = cache.memo.get("seen by the CPU")
    if seen is None or seen.key.data_ptr() != cache.key.data_ptr():
        tensors = [_seen(tensor) for tensor in (cache.key, cache.value, cache.key_scale, cache.value_scale)]
        seen = cache.memo["seen by the CPU"] = KVCache(*tensors, cache.k_scale, cache.v_scale)  # type: ignore[arg-type]
    return seen


def paged_attention(
    query: torch.Tensor,
    cache: KVCache,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    if not query.is_cuda:
        return _paged_attention(query, cache, metadata, scale, sliding_window, soft_cap, alibi_slopes, sinks, out)
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    steps = [on_cpu(tensor) for tensor in (metadata.query_start_loc, metadata.seq_lens, metadata.block_table)]
    rest = scale, sliding_window, soft_cap, _seen(alibi_slopes), _seen(sinks)
    call_on_gpu(partial(_attend, on_cpu(query), _seen_cache(cache), steps, rest, on_cpu(out)))
    return out


@torch.inference_mode()
def _attend(
    query: torch.Tensor, cache: KVCache, steps: list[torch.Tensor], rest: tuple[Any, ...], out: torch.Tensor
) -> None:
    starts, lengths, table = steps
    counts = starts.diff()
    is_padding = lengths == 0
    lengths = torch.where(is_padding, counts, lengths)
    table = table.masked_fill(is_padding[:, None], 0)
    step = AttentionMetadata(starts, lengths, table, counts.tolist(), lengths.tolist())
    cpu_attention.paged_attention(query, cache, step, *rest, out)
    out[is_padding.repeat_interleave(counts)] = 0


def rope_and_cache(
    qkv: torch.Tensor,
    num_heads: int,
    positions: torch.Tensor | None,
    cos_sin_cache: torch.Tensor | None,
    cache: KVCache,
    slot_mapping: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    norm_eps: float,
    unit_offset: bool,
    interleaved: bool,
) -> torch.Tensor:
    if not qkv.is_cuda:
        rest = (q_norm, k_norm, norm_eps, unit_offset, interleaved)
        return _rope_and_cache(qkv, num_heads, positions, cos_sin_cache, cache, slot_mapping, *rest)
    query = torch.empty(len(qkv), num_heads, cache.head_dim, dtype=qkv.dtype, device=qkv.device)
    table = _seen(cos_sin_cache)
    arguments = (num_heads, _seen(positions), table, _seen_cache(cache), on_cpu(slot_mapping))
    rest = (_seen(q_norm), _seen(k_norm), norm_eps, unit_offset, interleaved)
    call_on_gpu(partial(_rotate, on_cpu(qkv), arguments, rest, on_cpu(query)))
    return query


@torch.inference_mode()
def _rotate(qkv: torch.Tensor, arguments: tuple[Any, ...], rest: tuple[Any, ...], query: torch.Tensor) -> None:
    query.copy_(cpu_rotary.rope_and_cache(qkv, *arguments, *rest))
