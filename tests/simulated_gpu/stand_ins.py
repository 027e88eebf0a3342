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
        result = function(*map(_seen, arguments))
        if isinstance(result, torch.Tensor):
            return to_gpu(result)
        return None if result is None else tuple(to_gpu(value) for value in result)

    return call


def _seen(value: Any) -> Any:
    """An argument as the CPU sees it."""
    if isinstance(value, KVCache):
        return _seen_cache(value)
    return on_cpu(value) if isinstance(value, torch.Tensor) else value


def _seen_cache(cache: KVCache) -> KVCache:
    seen = cache.memo.get("seen by the CPU")
    if seen is None or seen.key.data_ptr() != cache.key.data_ptr():
        tensors = [_seen(tensor) for tensor in (cache.key, cache.value, cache.key_scale, cache.value_scale)]
        seen = cache.memo["seen by the CPU"] = KVCache(*tensors, cache.k_scale, cache.v_scale)
    return seen


def paged_attention(query: torch.Tensor, cache: KVCache, metadata: AttentionMetadata, *rest: Any) -> torch.Tensor:
    """The face's; ``rest`` is passed on, and ends with the place of the result."""
    if not query.is_cuda:
        return _paged_attention(query, cache, metadata, *rest)
    *options, out = rest
    result: torch.Tensor = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    steps = [on_cpu(tensor) for tensor in (metadata.query_start_loc, metadata.seq_lens, metadata.block_table)]
    call_on_gpu(partial(_attend, on_cpu(query), _seen(cache), steps, [_seen(one) for one in options], on_cpu(result)))
    return result


@torch.inference_mode()
def _attend(
    query: torch.Tensor, cache: KVCache, steps: list[torch.Tensor], options: list[Any], out: torch.Tensor
) -> None:
    starts, lengths, table = steps
    counts = starts.diff()
    is_padding = lengths == 0
    lengths = torch.where(is_padding, counts, lengths)
    table = table.masked_fill(is_padding[:, None], 0)
    step = AttentionMetadata(starts, lengths, table, counts.tolist(), lengths.tolist())
    cpu_attention.paged_attention(query, cache, step, *options, out)
    out[is_padding.repeat_interleave(counts)] = 0


def rope_and_cache(qkv: torch.Tensor, num_heads: int, *rest: Any) -> torch.Tensor:
    """The face's; ``rest`` is passed on, and has the cache in it."""
    if not qkv.is_cuda:
        return _rope_and_cache(qkv, num_heads, *rest)
    (cache,) = (value for value in rest if isinstance(value, KVCache))
    query = torch.empty(len(qkv), num_heads, cache.head_dim, dtype=qkv.dtype, device=qkv.device)
    call_on_gpu(partial(_rotate, on_cpu(qkv), num_heads, [_seen(value) for value in rest], on_cpu(query)))
    return query


@torch.inference_mode()
def _rotate(qkv: torch.Tensor, num_heads: int, rest: list[Any], query: torch.Tensor) -> None:
    query.copy_(cpu_rotary.rope_and_cache(qkv, num_heads, *rest))
