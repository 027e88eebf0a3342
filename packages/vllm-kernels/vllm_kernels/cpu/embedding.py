from functools import cache

import torch

from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import embedding as eager

_embed = Kernel("embed", POINTER, POINTER, POINTER, INT64, INT64, INT64, FLOAT, INT32, INT32, returns=INT32)


def embedding(ids: torch.Tensor, table: torch.Tensor, scale: float | None) -> torch.Tensor:
    dtype = table.dtype
    if dtype not in FLOATS or not (table.is_contiguous() and ids.is_contiguous()):
        return eager.embedding(ids, table, scale)
    (tokens,), (rows, size) = ids.shape, table.shape
    out = torch.empty((tokens, size), dtype=dtype)
    refused = _embed.call(
        ids.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        tokens,
        rows,
        size,
        1.0 if scale is None else _rounded(scale, dtype),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    if refused:
        raise IndexError(f"an id is outside of the {rows} rows")
    return out


@cache
def _rounded(scale: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(scale, dtype=dtype))
