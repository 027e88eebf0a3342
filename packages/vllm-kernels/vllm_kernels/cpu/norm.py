import torch

from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import norm as eager

_rms_norm = Kernel("rms_norm", POINTER, POINTER, POINTER, INT64, INT64, INT64, FLOAT, FLOAT, INT32, INT32)
_add_rms_norm = Kernel(
    "add_rms_norm", POINTER, POINTER, POINTER, POINTER, POINTER, INT64, INT64, FLOAT, FLOAT, INT32, INT32
)
_layer_norm = Kernel("layer_norm", POINTER, POINTER, POINTER, POINTER, INT64, INT64, INT64, FLOAT, INT32, INT32)
_add_layer_norm = Kernel(
    "add_layer_norm", POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INT64, INT64, FLOAT, INT32, INT32
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
    dtype = x.dtype
    if dtype not in FLOATS or not _plain(weight, dtype):
        return eager.rms_norm(x, weight, eps, unit_offset)
    x, size, stride = _rows(x)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm.call(
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        x.numel() // size,
        size,
        stride,
        eps,
        float(unit_offset),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = x.dtype
    if dtype not in FLOATS or not _plain(weight, dtype):
        return eager.fused_add_rms_norm(x, residual, weight, eps, unit_offset)
    size = x.shape[-1]
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    _add_rms_norm.call(
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        total.data_ptr(),
        x.numel() // size,
        size,
        eps,
        float(unit_offset),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out, total


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    dtype = x.dtype
    if dtype not in FLOATS or not (_plain(weight, dtype) and _plain(bias, dtype)):
        return eager.layer_norm(x, weight, bias, eps)
    x, size, stride = _rows(x)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _layer_norm.call(
        x.data_ptr(),
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        x.numel() // size,
        size,
        stride,
        eps,
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = x.dtype
    if dtype not in FLOATS or not (_plain(weight, dtype) and _plain(bias, dtype)):
        return eager.fused_add_layer_norm(x, residual, weight, bias, eps)
    size = x.shape[-1]
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    _add_layer_norm.call(
        x.data_ptr(),
        residual.data_ptr(),
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        total.data_ptr(),
        x.numel() // size,
        size,
        eps,
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out, total


def _plain(weight: torch.Tensor | None, dtype: torch.dtype) -> bool:
    return weight is None or (weight.dtype == dtype and weight.is_contiguous())


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """``x``, the size of its rows and what lies between two of them; a copy where they are not evenly apart."""
    size = x.shape[-1]
    if x.is_contiguous():
        return x, size, size
    if x.ndim == 2 and x.stride(1) == 1:
        return x, size, x.stride(0)
    return x.contiguous(), size, size
