import torch

from vllm_kernels.cpu.cache import address_of, slot_outside
from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import rotary as eager
from vllm_kernels.ops.cache import KVCache

_rope_and_cache = Kernel(
    "rope_and_cache",
    *(POINTER, INT64, INT64, INT64, POINTER),
    *(POINTER, POINTER, INT64, INT64, POINTER),
    *(POINTER, POINTER, FLOAT, FLOAT, INT32, INT32, INT32),
    returns=INT32,
)


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
    dtype, view = qkv.dtype, address_of(cache)
    tokens, stride = qkv.shape[0], qkv.stride(0)
    if (
        view is None
        or cache.has_static_scales
        or dtype not in FLOATS
        or qkv.stride(1) != 1
        or not slot_mapping.is_contiguous()
        or not _plain(positions, torch.int64)
        or not _plain(q_norm, dtype)
        or not _plain(k_norm, dtype)
        or not _plain(cos_sin_cache, torch.float32)
    ):
        return eager.rope_and_cache(
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
    max_position, rotary_dim = (0, 0) if cos_sin_cache is None else cos_sin_cache.shape
    refused = _rope_and_cache.call(
        qkv.data_ptr(),
        stride,
        tokens,
        num_heads,
        view,
        None if positions is None else positions.data_ptr(),
        None if cos_sin_cache is None else cos_sin_cache.data_ptr(),
        max_position,
        rotary_dim,
        slot_mapping.data_ptr(),
        None if q_norm is None else q_norm.data_ptr(),
        None if k_norm is None else k_norm.data_ptr(),
        norm_eps,
        float(unit_offset),
        interleaved,
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    if refused == 1:
        raise IndexError(f"a position is outside of the {max_position} of cos_sin_cache")
    if refused:
        raise slot_outside(cache)
    head_dim = cache.key.shape[3]
    return qkv.as_strided((tokens, num_heads, head_dim), (stride, head_dim, 1))


def _plain(tensor: torch.Tensor | None, dtype: torch.dtype) -> bool:
    return tensor is None or (tensor.dtype == dtype and tensor.is_contiguous())
