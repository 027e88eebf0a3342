import torch


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin_cache: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    cos, sin = cos_sin_cache.index_select(0, positions).to(wide).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, rotary_dim/2]
    return _rotate(query, cos, sin, interleaved), _rotate(key, cos, sin, interleaved)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    # Widened once: products of mixed dtypes are several times slower than the conversion.
    old = x[..., :rotary_dim].to(cos.dtype)
    new = torch.empty_like(old)
    old_1, old_2 = _pairs(old, interleaved)
    new_1, new_2 = _pairs(new, interleaved)
    torch.mul(old_1, cos, out=new_1).addcmul_(old_2, sin, value=-1)
    torch.mul(old_2, cos, out=new_2).addcmul_(old_1, sin)
    rotated = new.to(x.dtype)
    return rotated if rotary_dim == x.shape[-1] else torch.cat([rotated, x[..., rotary_dim:]], dim=-1)


def _pairs(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and of the second of each pair of dimensions."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]
