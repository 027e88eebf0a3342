"""Rotary position embedding (arXiv:2104.09864)."""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape


def apply_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate pairs of dimensions of every head by the angles of the token's position.

    Pair ``i`` is dimensions ``(i, i + rotary_dim / 2)`` (half-split, as NeoX, Llama, Qwen) or, interleaved,
    ``(2 i, 2 i + 1)`` (as GPT-J). Dimensions from ``rotary_dim`` on pass unchanged. Computed in fp32 (fp64 for fp64
    input) and rounded once to the dtype of the input; the transformers library computes in the input's dtype
    with cosines rounded to it, so the two agree to fp32 precision in fp32 and to bf16 precision in bf16.

    Args:
        query: ``[num_tokens, num_heads, head_dim]``, floating point.
        key: ``[num_tokens, num_kv_heads, head_dim]``, dtype of ``query``.
        positions: ``[num_tokens]``, int64, each in ``[0, max_position)``.
        cos_sin_cache: ``[max_position, rotary_dim]``, floating point (fp32 keeps precision): cosines, then sines.
        interleaved: which dimensions make a pair, see above.

    Returns:
        Rotated query and key: new tensors with the shapes and dtypes of the inputs.

    Raises:
        ValueError: shapes or dtypes do not fit, or ``rotary_dim`` is odd or above ``head_dim``.
        IndexError: a position is outside the cache.
    """
    if query.ndim != 3:
        raise ValueError(f"query must have shape [num_tokens, num_heads, head_dim], got {list(query.shape)}")
    num_tokens, _, head_dim = query.shape
    check_shape("key", key, (num_tokens, None, head_dim))
    check_dtype("key", key, query.dtype)
    check_shape("positions", positions, (num_tokens,))
    check_dtype("positions", positions, torch.int64)
    check_shape("cos_sin_cache", cos_sin_cache, (None, None))
    check_floating("cos_sin_cache", cos_sin_cache)
    rotary_dim = cos_sin_cache.shape[1]
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(f"cos_sin_cache must be even and at most head_dim={head_dim} wide, got {rotary_dim}")
    result: tuple[torch.Tensor, torch.Tensor] = face_of("rotary", query.device).apply_rotary(
        query, key, positions, cos_sin_cache, interleaved
    )
    return result
