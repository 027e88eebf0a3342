import ctypes

import torch

from vllm_kernels.cpu.native import DTYPES, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import cache as eager
from vllm_kernels.eager.cache import copy_blocks, gather_kv
from vllm_kernels.ops.cache import KVCache
from vllm_kernels.reference.cache import over

__all__ = ["MAX_HEAD_DIM", "address_of", "copy_blocks", "gather_kv", "slot_outside", "write_kv"]

MAX_HEAD_DIM = 1024
"""``kMaxHeadDim`` of ``csrc/cpu/kv_row.h``."""

_write_kv = Kernel(
    "write_kv",
    *(POINTER, POINTER, INT64, INT64, POINTER, INT64, INT64, POINTER, INT64, INT32, INT32),
    returns=INT32,
)


class _CacheView(ctypes.Structure):
    """``CacheView`` of ``csrc/cpu/kv_row.h``."""

    _fields_ = (
        ("key", POINTER),
        ("value", POINTER),
        ("key_scale", POINTER),
        ("value_scale", POINTER),
        ("num_blocks", INT64),
        ("heads", INT64),
        ("block_size", INT64),
        ("head_dim", INT64),
        ("storage", INT32),
    )


def address_of(cache: KVCache) -> int | None:
    """Of the cache's description for C++, which is made once; None for caches that the kernels do not serve."""
    view = cache.memo.get(_CacheView)
    if view is None:
        view = cache.memo[_CacheView] = _describe(cache)
    return ctypes.addressof(view) if view else None


def _describe(cache: KVCache) -> _CacheView | None:
    if cache.head_dim > MAX_HEAD_DIM:
        return None
    tensors = (cache.key, cache.value, cache.key_scale, cache.value_scale)
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return _CacheView(
        *pointers, cache.num_blocks, cache.num_kv_heads, cache.block_size, cache.head_dim, DTYPES[cache.key.dtype]
    )


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    if cache.has_static_scales:
        key, value = over(key.float(), cache.k_scale), over(value.float(), cache.v_scale)
    key_token, key_head, key_entry = key.stride()
    value_token, value_head, value_entry = value.stride()
    view = address_of(cache)
    if (
        view is None
        or key.dtype not in FLOATS
        or value.dtype != key.dtype
        or key_entry != 1
        or value_entry != 1
        or not slot_mapping.is_contiguous()
    ):
        eager.store(key, value, cache, slot_mapping)
        return
    refused = _write_kv.call(
        view,
        key.data_ptr(),
        key_token,
        key_head,
        value.data_ptr(),
        value_token,
        value_head,
        slot_mapping.data_ptr(),
        key.shape[0],
        DTYPES[key.dtype],
        torch.get_num_threads(),
    )
    if refused:
        raise slot_outside(cache)


def slot_outside(cache: KVCache) -> IndexError:
    """The error of a slot beyond the cache."""
    return IndexError(f"slot_mapping has a slot outside of the cache's {cache.num_blocks * cache.block_size}")
