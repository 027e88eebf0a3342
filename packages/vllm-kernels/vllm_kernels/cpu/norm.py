import torch

from vllm_kernels.cpu.native import DTYPES, FLOAT, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import norm as eager

_rms_norm = Kernel("rms_norm", POINTER, POINTER, POINTER, INT64, INT64, INT64, FLOAT, FLOAT, INT32, INT32)
_add_rms_norm = Kernel(
    "add_rms_norm", POINTER, POINTER, POINTER, POINTER, POINTER, INT64, INT64, FLOAT, FLOAT, INT32, INT32
)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
    if x.dtype not in FLOATS or weight.dtype != x.dtype or not weight.is_contiguous():
        return eager.rms_norm(x, weight, eps, unit_offset)
    size = x.shape[-1]
    x = x.contiguous()
    out = torch.empty_like(x)
    _rms_norm.call(
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        x.numel() // size,
        size,
        size,
        eps,
        float(unit_offset),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return out


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype not in FLOATS or weight.dtype != x.dtype or not weight.is_contiguous():
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
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return out, total


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    return eager.layer_norm(x, weight, bias, eps)
