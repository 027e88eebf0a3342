"""Projections in C++: weights in panels, see ``csrc/cpu/pack.h``."""

import ctypes

import torch

from vllm_kernels import batch_invariance
from vllm_kernels.cpu.native import DTYPES, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.cpu.pages import zeros
from vllm_kernels.eager import linear as eager
from vllm_kernels.linear_weight import Activation, LinearWeight, outside

_linear = Kernel("linear", *(POINTER,) * 5, *(INT64,) * 3, *(INT32,) * 4)
_fill = Kernel("linear_fill", POINTER, POINTER, *(INT64,) * 4, INT32, INT32)
_rows = Kernel("linear_rows", POINTER, POINTER, POINTER, INT64, INT32, returns=INT32)

_NO_GATE = 0
_GATES: dict[Activation, int] = {"silu": 1, "gelu": 2, "gelu_tanh": 3, "swigluoai": 4}
_PANEL, _PADDED_K = 64, 32
_PIECE = 1 << 24
"""Numbers of a type that the kernels do not read, converted at a time."""


class _Weight(ctypes.Structure):
    """``Weight`` of ``csrc/cpu/pack.h``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class PackedWeight(LinearWeight):
    """fp32, bf16 or fp16 in panels of 64 rows; padding is zeros."""

    checks_ids = True

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        panel = _PANEL // 2 if gated else _PANEL
        columns = -(-(out_features // 2 if gated else out_features) // panel) * _PANEL
        depth = -(-in_features // _PADDED_K) * _PADDED_K
        self._memory = zeros(columns * depth * dtype.itemsize)
        self._header = _Weight(self._memory.data_ptr(), out_features, in_features, DTYPES[dtype], gated)
        self._address = ctypes.addressof(self._header)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        if rows.dtype not in FLOATS:
            # A piece at a time: a copy of all of it might not fit.
            step = max(1, _PIECE // self.in_features)
            for first in range(0, len(rows), step):
                self.fill(rows[first : first + step].to(self.dtype), start + first)
            return
        _fill.call(
            self._address,
            rows.data_ptr(),
            start,
            len(rows),
            rows.stride(0),
            rows.stride(1),
            DTYPES[rows.dtype],
            torch.get_num_threads(),
        )

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids.contiguous()
        out = torch.empty(len(ids), self.in_features, dtype=self.dtype)
        if _rows.call(self._address, ids.data_ptr(), out.data_ptr(), len(ids), torch.get_num_threads()):
            raise outside(self.out_features)
        return out

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        return self._multiply(x, bias, residual, self.out_features, out_dtype, _NO_GATE)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return self._multiply(x, bias, None, self.out_features // 2, self.dtype, _GATES[activation])

    def _multiply(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        columns: int,
        out_dtype: torch.dtype,
        gate: int,
    ) -> torch.Tensor:
        stride, step = x.stride()
        if step != 1:
            x = x.contiguous()
            stride = self.in_features
        count = len(x)
        bias = None if bias is None else bias.contiguous()  # a copy must live until the product is done
        residual_stride = 0
        if residual is not None:
            if residual.stride(1) != 1:
                residual = residual.contiguous()
            residual_stride = residual.stride(0)
        out = torch.empty((count, columns), dtype=out_dtype)
        _linear.call(
            self._address,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            out.data_ptr(),
            count,
            stride,
            residual_stride,
            DTYPES[out_dtype],
            gate,
            batch_invariance.enabled(),
            torch.get_num_threads(),
        )
        return out


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    if dtype not in FLOATS:
        return eager.new_weight(out_features, in_features, dtype, gated)
    return PackedWeight(out_features, in_features, dtype, gated)
