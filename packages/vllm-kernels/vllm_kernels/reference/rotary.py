import torch


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin_cache: torch.Tensor, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return _rotate(query, positions, cos_sin_cache, interleaved), _rotate(key, positions, cos_sin_cache, interleaved)


def _rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin_cache: torch.Tensor, interleaved: bool) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    half = cos_sin_cache.shape[1] // 2
    angles = cos_sin_cache[positions].to(wide)
    values, result = x.to(wide), x.to(wide).clone()
    for pair in range(half):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
        cos, sin = angles[:, None, pair], angles[:, None, half + pair]
        result[..., first] = values[..., first] * cos - values[..., second] * sin
        result[..., second] = values[..., second] * cos + values[..., first] * sin
    return result.to(x.dtype)
