"""The paged KV cache of one layer: allocation and writing.

Layout, known only to this wheel: keys and values are each ``[num_blocks, num_kv_heads, block_size, head_dim]``, so that
what one head attends to stands together. Token ``offset`` of block ``block`` is slot ``block * block_size + offset``.
"""

import math
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.cache_format import SCALED, CacheFormat
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.cpu import pages

STORAGE: dict[CacheFormat, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8_per_token_head": torch.int8,
    "fp8_per_token_head": torch.float8_e4m3fn,
}
"""Type of the stored entries."""


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """Keys and values of one layer, in blocks. ``allocate_kv_cache`` makes them.

    Args:
        key, value: ``[num_blocks, num_kv_heads, block_size, head_dim]``, contiguous, in the storage type of the format.
        key_scale, value_scale: fp32 ``[num_blocks, num_kv_heads, block_size]``, contiguous: entry times scale is what
            was stored. None for formats without scales.
        k_scale, v_scale: of ``fp8_e4m3``: one scale for all keys and one for all values, as checkpoints may have them;
            entry times scale is what was stored, and what is beyond 448 of them is that. 1 in other formats.
        format: found from these.
        memo: what a face works out once for a cache. Faces only.

    Raises:
        ValueError: the four do not fit together.
    """

    key: torch.Tensor
    value: torch.Tensor
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    format: CacheFormat = field(init=False)
    memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, tensor in (("key", self.key), ("value", self.value)):
            if tensor.ndim != 4 or not tensor.is_contiguous() or tensor.shape != self.key.shape:
                raise ValueError(
                    f"{name} of a cache must be contiguous [num_blocks, num_kv_heads, block_size, head_dim] like key, "
                    f"got {list(tensor.shape)}"
                )
            check_dtype(f"{name} of a cache", tensor, self.key.dtype)
        for name, scale in (("key_scale", self.key_scale), ("value_scale", self.value_scale)):
            if (scale is None) != (self.key_scale is None):
                raise ValueError("a cache has scales of both keys and values, or of neither")
            if scale is not None:
                check_shape(name, scale, tuple(self.key.shape[:3]))
                check_dtype(name, scale, torch.float32)
                if not scale.is_contiguous():
                    raise ValueError(f"{name} must be contiguous")
        scaled = self.key_scale is not None
        formats = [name for name, dtype in STORAGE.items() if dtype == self.key.dtype and (name in SCALED) == scaled]
        if not formats:
            raise ValueError(f"no cache format stores {self.key.dtype} {'with' if scaled else 'without'} scales")
        object.__setattr__(self, "format", formats[0])
        for name, factor in (("k_scale", self.k_scale), ("v_scale", self.v_scale)):
            if not 0 < factor < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {factor}")
            if factor != 1 and self.format != "fp8_e4m3":
                raise ValueError(f"{name} is for the format fp8_e4m3, got {factor} for {self.format}")

    @property
    def has_static_scales(self) -> bool:
        """Whether ``k_scale`` or ``v_scale`` says something."""
        return self.k_scale != 1 or self.v_scale != 1

    def tensors(self) -> list[torch.Tensor]:
        """All that it consists of."""
        tensors = (self.key, self.value, self.key_scale, self.value_scale)
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.key.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and of values."""
        return self.key.shape[1]

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.key.shape[2]

    @property
    def head_dim(self) -> int:
        """Entries of a head."""
        return self.key.shape[3]


def allocate_kv_cache(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    format: CacheFormat,
    device: torch.device | str | None = None,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> KVCache:
    """The cache of one layer, filled with zeros.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        num_kv_heads, head_dim: heads of keys and values, and their width.
        format: how entries are stored.
        device: where the tensors live; None for the one that torch takes by default.
        k_scale, v_scale: see ``KVCache``.

    Raises:
        ValueError: a size is below 1, the format is unknown, or a scale is not as described.
    """
    sizes = {"num_blocks": num_blocks, "num_kv_heads": num_kv_heads, "block_size": block_size, "head_dim": head_dim}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if format not in STORAGE:
        raise ValueError(f"format must be one of {', '.join(get_args(CacheFormat))}, got {format!r}")
    shape, dtype, place = tuple(sizes.values()), STORAGE[format], where(device)
    key, value = _zeros(shape, dtype, place), _zeros(shape, dtype, place)
    if format not in SCALED:
        return KVCache(key, value, k_scale=k_scale, v_scale=v_scale)
    key_scale, value_scale = (_zeros(shape[:3], torch.float32, place) for _ in range(2))
    return KVCache(key, value, key_scale, value_scale, k_scale, v_scale)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU, the system hands out their memory page by page as blocks are first written.

    ``torch.zeros`` writes every byte: a second per GiB of start-up, and memory that a short run never needs.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return pages.zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def write_kv(key: torch.Tensor, value: torch.Tensor, cache: KVCache, slot_mapping: torch.Tensor) -> None:
    """Store keys and values of new tokens in their slots, in place, in the format of the cache.

    Args:
        key, value: ``[num_tokens, num_kv_heads, head_dim]``, floating point.
        cache: from ``allocate_kv_cache``.
        slot_mapping: ``[num_tokens]``, int64: slot of each token, negative to leave it out. No slot twice.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a slot is outside the cache. On a GPU its token is left out.
    """
    _, num_kv_heads, _, head_dim = cache.key.shape
    num_tokens = key.shape[0]
    for name, tensor in (("key", key), ("value", value)):
        check_shape(name, tensor, (num_tokens, num_kv_heads, head_dim))
        check_floating(name, tensor)
    check_shape("slot_mapping", slot_mapping, (num_tokens,))
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    face_of("cache", key.device).write_kv(key, value, cache, slot_mapping)


def copy_blocks(cache: KVCache, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole blocks, in place: entries as they are stored, and their scales.

    Args:
        cache: from ``allocate_kv_cache``.
        sources, targets: ``[n]``, int64: block ``sources[i]`` goes to block ``targets[i]``. No target twice, and none
            is also a source.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a block is outside the cache. On a GPU the pair is left out.
    """
    check_shape("sources", sources, (None,))
    check_shape("targets", targets, (len(sources),))
    for name, blocks in (("sources", sources), ("targets", targets)):
        check_dtype(name, blocks, torch.int64)
    face_of("cache", cache.key.device).copy_blocks(cache, sources, targets)


def gather_kv(cache: KVCache, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of some slots: what ``write_kv`` stored there, one token after the other.

    Args:
        cache: from ``allocate_kv_cache``.
        slots: ``[num_tokens]``, int64: slot of each token, negative for zeros. Any number of times the same.
        dtype: of the result, floating point. Entries times scales, in fp32 at least, are rounded to it.

    Returns:
        Keys and values, each ``[num_tokens, num_kv_heads, head_dim]``.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a slot is outside the cache. On a GPU it reads as zeros.
    """
    check_shape("slots", slots, (None,))
    check_dtype("slots", slots, torch.int64)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    key, value = face_of("cache", cache.key.device).gather_kv(cache, slots, dtype)
    return key, value
