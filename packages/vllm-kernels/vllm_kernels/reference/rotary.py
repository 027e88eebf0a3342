import torch

from vllm_kernels.ops.cache import KVCache
from vllm_kernels.reference.cache import write_kv
from vllm_kernels.reference.norm import rms_norm


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
    wide = torch.promote_types(qkv.dtype, torch.float32)
    heads = qkv.to(wide).unflatten(1, (-1, cache.head_dim))
    query, key, value = heads.split([num_heads, cache.num_kv_heads, cache.num_kv_heads], dim=1)
    if q_norm is not None:
        query = rms_norm(query, q_norm, norm_eps, unit_offset)
    if k_norm is not None:
        key = rms_norm(key, k_norm, norm_eps, unit_offset)
    if cos_sin_cache is not None and positions is not None:
        if ((positions < 0) | (positions >= len(cos_sin_cache))).any():
            raise IndexError(f"a position is outside of the {len(cos_sin_cache)} of cos_sin_cache")
        angles = cos_sin_cache[positions].to(wide)
        query, key = _rotate(query, angles, interleaved), _rotate(key, angles, interleaved)
    write_kv(key, value, cache, slot_mapping)
    result: torch.Tensor = query.to(qkv.dtype)
    return result


def _rotate(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = angles.shape[1] // 2
    result = x.clone()
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        cos, sin = angles[:, None, pair], angles[:, None, half + pair]
        result[..., first] = x[..., first] * cos - x[..., second] * sin
        result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result
