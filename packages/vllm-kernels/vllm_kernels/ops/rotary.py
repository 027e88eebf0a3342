"""Between the projection to queries, keys and values and the attention: norms of heads, rotation, cache.

Rotary position embedding: arXiv:2104.09864.
"""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape
from vllm_kernels.ops.cache import KVCache


def rope_and_cache(
    qkv: torch.Tensor,
    num_heads: int,
    positions: torch.Tensor | None,
    cos_sin_cache: torch.Tensor | None,
    cache: KVCache,
    slot_mapping: torch.Tensor,
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    norm_eps: float = 0.0,
    unit_offset: bool = False,
    interleaved: bool = False,
) -> torch.Tensor:
    """Normalise and rotate the heads of queries and keys, store keys and values in the cache, return the queries.

    In this order: the RMS norm of each head (``ops.norm.rms_norm``) where a weight is given; the rotation of pairs of
    its dimensions by the angles of the token's position. Pair ``i`` is dimensions ``(i, i + rotary_dim / 2)`` (as NeoX,
    Llama, Qwen) or, interleaved, ``(2 i, 2 i + 1)`` (as GPT-J); dimensions from ``rotary_dim`` on pass unchanged. It
    is all computed in fp32 (fp64 for fp64 input) and rounded once: queries to the dtype of ``qkv``, keys and values to
    the format of the cache. The transformers library rounds after the norm, and its cosines, to the input's dtype: the
    two agree to the precision of that dtype.

    Args:
        qkv: ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``, floating point: queries, keys, values. The
            part of the queries may be overwritten.
        num_heads: of the queries; those of keys and values, and the width of a head, are the cache's.
        positions: ``[num_tokens]``, int64, each in ``[0, max_position)``; None where nothing is rotated.
        cos_sin_cache: ``[max_position, rotary_dim]``, floating point (fp32 keeps precision): cosines, then sines. None:
            no rotation.
        cache: from ``cache.allocate_kv_cache``.
        slot_mapping: ``[num_tokens]``, int64: slot of each token's key and value, negative to leave them out. No slot
            twice.
        q_norm, k_norm: ``[head_dim]``, weights of the norms; None: no norm.
        norm_eps, unit_offset: as in ``ops.norm.rms_norm``, of both norms.
        interleaved: which dimensions make a pair, see above.

    Returns:
        Queries ``[num_tokens, num_heads, head_dim]``, dtype of ``qkv``, possibly a view of it with its strides.

    Raises:
        ValueError: shapes or dtypes do not fit, or ``rotary_dim`` is odd or above ``head_dim``.
        IndexError: a position is outside of ``cos_sin_cache``, or a slot outside of the cache. On a GPU such a token is
            not rotated, or left out.
    """
    _, num_kv_heads, _, head_dim = cache.key.shape
    num_tokens = qkv.shape[0]
    check_shape("qkv", qkv, (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim))
    check_floating("qkv", qkv)
    check_shape("slot_mapping", slot_mapping, (num_tokens,))
    check_dtype("slot_mapping", slot_mapping, torch.int64)
    if cos_sin_cache is not None:
        _check_rotation(positions, cos_sin_cache, num_tokens, head_dim)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check_shape(name, weight, (head_dim,))
    result: torch.Tensor = face_of("rotary", qkv.device).rope_and_cache(
        qkv,
        num_heads,
        positions,
        cos_sin_cache,
        cache,
        slot_mapping,
        q_norm,
        k_norm,
        norm_eps,
        unit_offset,
        interleaved,
    )
    return result


def _check_rotation(
    positions: torch.Tensor | None, cos_sin_cache: torch.Tensor, num_tokens: int, head_dim: int
) -> None:
    if positions is None:
        raise ValueError("positions must be given with cos_sin_cache")
    check_shape("positions", positions, (num_tokens,))
    check_dtype("positions", positions, torch.int64)
    check_shape("cos_sin_cache", cos_sin_cache, (None, None))
    check_floating("cos_sin_cache", cos_sin_cache)
    rotary_dim = cos_sin_cache.shape[1]
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(f"cos_sin_cache must be even and at most head_dim={head_dim} wide, got {rotary_dim}")
