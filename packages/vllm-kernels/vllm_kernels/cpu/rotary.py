import torch


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin_cache: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    cos, sin = cos_sin_cache.index_select(0, positions).to(wide).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, rotary_dim/2]
    return _rotate(query, cos, sin, interleaved), _rotate(key, cos, sin, interleaved)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = cos.shape[-1]
    if interleaved:
        first, second = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    else:
        first, second = x[..., :half], x[..., half : 2 * half]
    rotated = (first * cos - second * sin, second * cos + first * sin)  # bf16 times fp32 is fp32
    result = torch.empty_like(x)
    if interleaved:
        result[..., 0 : 2 * half : 2], result[..., 1 : 2 * half : 2] = rotated
    else:
        result[..., :half], result[..., half : 2 * half] = rotated
    result[..., 2 * half :] = x[..., 2 * half :]
    return result
