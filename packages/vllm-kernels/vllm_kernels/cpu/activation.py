import torch

from vllm_kernels.cpu.native import DTYPES, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import activation as eager

_activate = Kernel("activate", POINTER, POINTER, INT64, INT32, INT32, INT32)
_activate_and_multiply = Kernel("activate_and_multiply", POINTER, INT64, POINTER, INT64, INT64, INT32, INT32, INT32)

_SILU, _GELU, _GELU_TANH, _RELU, _SWIGLUOAI = range(5)
"""``Kind`` of ``csrc/cpu/activation.cpp``."""


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _SILU) if x.dtype in FLOATS else eager.silu_and_mul(x)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _GELU) if x.dtype in FLOATS else eager.gelu_and_mul(x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _GELU_TANH) if x.dtype in FLOATS else eager.gelu_tanh_and_mul(x)


def swigluoai_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _SWIGLUOAI) if x.dtype in FLOATS else eager.swigluoai_and_mul(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, _GELU) if x.dtype in FLOATS else eager.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, _GELU_TANH) if x.dtype in FLOATS else eager.gelu_tanh(x)


def relu(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, _RELU) if x.dtype in FLOATS else eager.relu(x)


def _plain(x: torch.Tensor, kind: int) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _activate.call(x.data_ptr(), out.data_ptr(), x.numel(), kind, DTYPES[x.dtype], torch.get_num_threads())
    return out


def _gated(x: torch.Tensor, kind: int) -> torch.Tensor:
    *outer, width = x.shape
    x = x.contiguous()
    out = torch.empty((*outer, width // 2), dtype=x.dtype)
    _activate_and_multiply.call(
        x.data_ptr(),
        width,
        out.data_ptr(),
        x.numel() // width if width else 0,
        width // 2,
        kind,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return out
