"""Multi-head latent attention over a paged cache of latents (DeepSeek-V2, arXiv:2405.04434, section 2.1).

A token leaves one latent ``c`` (``lora_rank`` numbers, normalised) and one rotated key part ``k`` (``rope_dim``), which
all heads share. Head ``h`` of a model has the key ``[K_h c, k]`` and the value ``V_h c``, where ``K_h`` and ``V_h`` are
its rows of the up-projection. As ``q . (K_h c) = (K_h^T q) . c``, a layer takes ``K_h`` into the query and applies
``V_h`` to what comes back, and keys and values are never made.
"""

import math
from dataclasses import dataclass, field
from typing import get_args

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.cache_format import SCALED, CacheFormat
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.cpu import pages
from vllm_kernels.ops.attention import AttentionMetadata, check_metadata
from vllm_kernels.ops.cache import STORAGE


@dataclass(frozen=True, slots=True, eq=False)
class LatentCache:
    """Latents of one layer, in blocks. ``allocate_latent_cache`` makes them.

    Args:
        entries: ``[num_blocks, block_size, lora_rank + rope_dim]``, contiguous: of each token its latent, then its
            rotated key part. Token ``offset`` of block ``block`` is slot ``block * block_size + offset``.
        lora_rank: numbers of the latent.
        format: found from ``entries``.

    Raises:
        ValueError: the two do not fit together.
    """

    entries: torch.Tensor
    lora_rank: int
    format: CacheFormat = field(init=False)

    def __post_init__(self) -> None:
        if self.entries.ndim != 3 or not self.entries.is_contiguous():
            raise ValueError(
                "entries of a cache must be contiguous [num_blocks, block_size, lora_rank + rope_dim], "
                f"got {list(self.entries.shape)}"
            )
        if not 0 < self.lora_rank < self.entries.shape[2]:
            raise ValueError(f"lora_rank must be between 0 and {self.entries.shape[2]}, got {self.lora_rank}")
        formats = [name for name, dtype in STORAGE.items() if dtype == self.entries.dtype and name not in SCALED]
        if not formats:
            raise ValueError(f"no format of a latent cache stores {self.entries.dtype}")
        object.__setattr__(self, "format", formats[0])

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.entries.shape[0]

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.entries.shape[1]

    @property
    def rope_dim(self) -> int:
        """Numbers of the rotated key part."""
        return self.entries.shape[2] - self.lora_rank


def allocate_latent_cache(
    num_blocks: int,
    block_size: int,
    lora_rank: int,
    rope_dim: int,
    format: CacheFormat,
    device: torch.device | str | None = None,
) -> LatentCache:
    """The cache of one layer, filled with zeros.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        lora_rank, rope_dim: numbers of a latent and of a rotated key part (512 and 64 in DeepSeek-V3).
        format: how entries are stored: any without scales.
        device: where the tensor lives; None for the one that torch takes by default.

    Raises:
        ValueError: a size is below 1, or the format is none of a latent cache.
    """
    sizes = {"num_blocks": num_blocks, "block_size": block_size, "lora_rank": lora_rank, "rope_dim": rope_dim}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    formats = [name for name in get_args(CacheFormat) if name not in SCALED]
    if format not in formats:
        raise ValueError(f"format of a latent cache must be one of {', '.join(formats)}, got {format!r}")
    shape, dtype = (num_blocks, block_size, lora_rank + rope_dim), STORAGE[format]
    place = where(device)
    if place.type != "cpu":
        return LatentCache(torch.zeros(shape, dtype=dtype, device=place), lora_rank)
    return LatentCache(pages.zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape), lora_rank)


def write_latent(latent: torch.Tensor, key_rope: torch.Tensor, cache: LatentCache, slot_mapping: torch.Tensor) -> None:
    """Store the latents of new tokens in their slots, in place, in the format of the cache.

    Args:
        latent: ``[num_tokens, lora_rank]``, floating point.
        key_rope: ``[num_tokens, rope_dim]``, dtype of ``latent``.
        cache: from ``allocate_latent_cache``.
        slot_mapping: ``[num_tokens]``, int64: slot of each token, negative to leave it out. No slot twice.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: a slot is outside the cache. On a GPU its token is left out.
    """
    check_shape("latent", latent, (None, cache.lora_rank))
    check_shape("key_rope", key_rope, (latent.shape[0], cache.rope_dim))
    check_floating("latent", latent)
    check_dtype("key_rope", key_rope, latent.dtype)
    check_shape("slot_mapping", slot_mapping, (latent.shape[0],))
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    face_of("mla", latent.device).write_latent(latent, key_rope, cache, slot_mapping)


def latent_attention(
    query_latent: torch.Tensor,
    query_rope: torch.Tensor,
    cache: LatentCache,
    metadata: AttentionMetadata,
    *,
    scale: float,
) -> torch.Tensor:
    """Causal attention of this step's tokens to the latents of their sequence up to themselves.

    With ``s = scale * (query_latent . c + query_rope . k)`` of each token up to its own position, a head's result is
    the sum of ``softmax(s) c``. Latents of this step's tokens must be written already, and nothing else of the cache is
    read. Prompts and single tokens may be mixed. The result of a sequence does not depend on the others.

    Args:
        query_latent: ``[num_tokens, num_heads, lora_rank]``, floating point: queries without position, times ``K_h``.
            Any strides of tokens and heads.
        query_rope: ``[num_tokens, num_heads, rope_dim]``, same dtype: rotated queries.
        cache: from ``allocate_latent_cache``. Entries of another format are converted where they are read.
        metadata: of the step.
        scale: factor of the scores: ``(nope_dim + rope_dim) ** -0.5``, as of the query before ``K_h``, and what YaRN
            adds.

    Returns:
        ``[num_tokens, num_heads, lora_rank]``, dtype of the queries: what ``V_h`` is applied to.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
        IndexError: a block of the table that is followed lies outside the cache. On a GPU it reads as zeros.
    """
    check_shape("query_latent", query_latent, (None, None, cache.lora_rank))
    check_floating("query_latent", query_latent)
    check_shape("query_rope", query_rope, (*query_latent.shape[:2], cache.rope_dim))
    check_dtype("query_rope", query_rope, query_latent.dtype)
    check_metadata(metadata, query_latent.shape[0], "query_latent")
    result: torch.Tensor = face_of("mla", query_latent.device).latent_attention(
        query_latent, query_rope, cache, metadata, scale
    )
    return result
