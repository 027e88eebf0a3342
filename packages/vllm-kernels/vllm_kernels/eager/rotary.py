import torch

from vllm_kernels.eager.cache import write_kv
from vllm_kernels.eager.norm import rms_norm
from vllm_kernels.ops.cache import KVCache


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
    heads = qkv.unflatten(1, (-1, cache.head_dim))
    query, key, value = heads.split([num_heads, cache.num_kv_heads, cache.num_kv_heads], dim=1)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    # Widened once: products of mixed dtypes are several times slower than the conversion.
    if q_norm is not None:
        query = rms_norm(query.to(wide), q_norm, norm_eps, unit_offset)
    if k_norm is not None:
        key = rms_norm(key.to(wide), k_norm, norm_eps, unit_offset)
    if cos_sin_cache is not None and positions is not None:
        # index_select refuses positions outside of the table, negative ones too.
        cos, sin = cos_sin_cache.index_select(0, positions).to(wide).unsqueeze(1).chunk(2, dim=-1)
        query, key = _rotate(query.to(wide), cos, sin, interleaved), _rotate(key.to(wide), cos, sin, interleaved)
    write_kv(key, value, cache, slot_mapping)
    result: torch.Tensor = query.to(qkv.dtype)
    return result


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    old = x[..., :rotary_dim]
    new = torch.empty_like(old)
    old_1, old_2 = _pairs(old, interleaved)
    new_1, new_2 = _pairs(new, interleaved)
    torch.mul(old_1, cos, out=new_1).addcmul_(old_2, sin, value=-1)
    torch.mul(old_2, cos, out=new_2).addcmul_(old_1, sin)
    return new if rotary_dim == x.shape[-1] else torch.cat([new, x[..., rotary_dim:]], dim=-1)


def _pairs(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and of the second of each pair of dimensions."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
