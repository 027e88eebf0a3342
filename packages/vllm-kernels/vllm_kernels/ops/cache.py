"""The paged KV cache of one layer: allocation and writing.

Layout, known only to this wheel: keys and values are each ``[num_blocks, block_size, num_kv_heads, head_dim]``.
Token ``offset`` of block ``block`` is slot ``block * block_size + offset``.
"""

import math

import numpy as np
import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape

_ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector register."""


def allocate_kv_cache(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key cache and value cache of one layer, filled with zeros.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        num_kv_heads, head_dim: heads of keys and values, and their width.
        dtype: floating point type of the entries.
        device: where the tensors live.

    Raises:
        ValueError: a size is below 1.
    """
    sizes = {
        "num_blocks": num_blocks,
        "block_size": block_size,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    shape = tuple(sizes.values())
    if torch.device(device).type == "cpu":
        return _lazy_zeros(shape, dtype), _lazy_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose memory the system hands out page by page as blocks are first written.

    ``torch.zeros`` writes every byte: a second per GiB of start-up, and memory that a short run never needs.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[start : start + num_bytes]).view(dtype).view(shape)


def write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Store keys and values of new tokens in their slots, in place, rounded to the dtype of the caches.

    Args:
        key, value: ``[num_tokens, num_kv_heads, head_dim]``, floating point.
        key_cache, value_cache: from ``allocate_kv_cache``.
        slot_mapping: ``[num_tokens]``, int64: slot of each token, -1 to leave it out. No slot twice.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a slot is outside the cache.
    """
    check_caches(key_cache, value_cache)
    num_kv_heads, head_dim = key_cache.shape[2:]
    num_tokens = key.shape[0]
    for name, tensor in (("key", key), ("value", value)):
        check_shape(name, tensor, (num_tokens, num_kv_heads, head_dim))
        check_floating(name, tensor)
    check_shape("slot_mapping", slot_mapping, (num_tokens,))
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    face_of("cache", key.device).write_kv(key, value, key_cache, value_cache, slot_mapping)


def check_caches(key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
    """Both caches must be four-dimensional, alike and contiguous: faces see them as a flat list of slots."""
    if key_cache.ndim != 4 or not key_cache.is_contiguous():
        raise ValueError(f"key_cache must come from allocate_kv_cache, got shape {list(key_cache.shape)}")
    if value_cache.shape != key_cache.shape or value_cache.dtype != key_cache.dtype or not value_cache.is_contiguous():
        raise ValueError(f"value_cache must be like key_cache, got {list(value_cache.shape)}, {value_cache.dtype}")
