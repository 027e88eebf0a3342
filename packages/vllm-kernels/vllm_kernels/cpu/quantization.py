import torch
from torch.nn import functional

from vllm_kernels.cpu import native, pages
from vllm_kernels.cpu.native import DTYPES, FLOATS, INT32, INT64, POINTER, Kernel
from vllm_kernels.eager import quantization as eager
from vllm_kernels.linear_weight import Activation, outside
from vllm_kernels.quantized_weight import Quantization, QuantizedWeight

_SIZES = (INT64, INT64, INT64, INT32)  # out_features, in_features, group, bits
_fill = Kernel("quantized_fill", POINTER, INT64, INT32, INT64, INT64, POINTER, POINTER, *_SIZES, INT32, INT32)
_store = Kernel("quantized_store", POINTER, POINTER, POINTER, INT64, INT64, POINTER, POINTER, *_SIZES, INT32, INT32)
_rows = Kernel("quantized_rows", POINTER, INT64, POINTER, POINTER, POINTER, INT32, *_SIZES, INT32, INT32, returns=INT32)
_linear = Kernel("quantized_linear", POINTER, INT64, *(POINTER,) * 6, *_SIZES, *(INT32,) * 4)
_weight_only = Kernel("weight_only_linear", POINTER, INT64, INT64, *(POINTER,) * 5, *_SIZES, *(INT32,) * 5)

_PANEL = 64
_HEADER = 3 * _PANEL
"""Of ``csrc/cpu/quantized_layout.h``."""
_GATES = {"silu": 1, "gelu": 2, "gelu_tanh": 3, "swigluoai": 4}


class PackedWeight(QuantizedWeight):
    """Panels of 64 rows, each one stream of memory in the order of its use; see ``csrc/cpu/quantized_layout.h``."""

    checks_ids = True

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
    ) -> None:
        super().__init__(out_features, in_features, dtype, scheme, gated=gated)
        group = scheme.group_size or in_features
        last = in_features - (self.groups - 1) * group
        depth = (self.groups - 1) * group + -(-last // 8) * 8
        panels = -(-out_features // _PANEL)
        panel_bytes = self.groups * _HEADER + depth * _PANEL * scheme.bits // 8
        self.packed = pages.zeros(panels * panel_bytes)
        self.factors = torch.empty(panels, _PANEL)
        self._sizes = (out_features, in_features, group, scheme.bits)
        pieces = -(-in_features // scheme.activation_group)
        self._scratch_bytes = -(-in_features // 64) * 64 + 64 + 8 * pieces

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        if rows.dtype not in FLOATS:
            rows = rows.float()
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        _fill.call(
            rows.data_ptr(),
            rows.stride(0),
            DTYPES[rows.dtype],
            start,
            len(rows),
            self.packed.data_ptr(),
            self.factors.data_ptr(),
            *self._sizes,
            self.gated,
            torch.get_num_threads(),
        )

    def fill_quantized(self, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int) -> None:
        q, scales, zeros = q.contiguous(), scales.float().contiguous(), zeros.contiguous()
        _store.call(
            q.data_ptr(),
            scales.data_ptr(),
            zeros.data_ptr(),
            start,
            len(q),
            self.packed.data_ptr(),
            self.factors.data_ptr(),
            *self._sizes,
            self.gated,
            torch.get_num_threads(),
        )

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids.contiguous()
        out = torch.empty(len(ids), self.in_features, dtype=self.dtype)
        refused = _rows.call(
            ids.data_ptr(),
            len(ids),
            self.packed.data_ptr(),
            self.factors.data_ptr(),
            out.data_ptr(),
            DTYPES[self.dtype],
            *self._sizes,
            self.gated,
            torch.get_num_threads(),
        )
        if refused:
            raise outside(self.out_features)
        return self.out_of_order(out)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        out = torch.empty(len(x), self.out_features, dtype=out_dtype)
        self._multiply(x, bias, residual, out, 0)
        return out

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        out = torch.empty(len(x), self.out_features // 2, dtype=x.dtype)
        self._multiply(x, bias, None, out, _GATES[activation])
        return out

    def _multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out: torch.Tensor, gate: int
    ) -> None:
        x = self.in_order(x).contiguous()
        tensors = tuple(None if tensor is None else tensor.contiguous() for tensor in (bias, residual))
        pointers = (
            self.packed.data_ptr(),
            self.factors.data_ptr(),
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            out.data_ptr(),
        )
        types = (DTYPES[x.dtype], DTYPES[out.dtype], torch.get_num_threads())
        if self.scheme.activation_bits:
            scratch = torch.empty((len(x) + 15) * self._scratch_bytes, dtype=torch.uint8)
            _linear.call(x.data_ptr(), len(x), *pointers, scratch.data_ptr(), *self._sizes, gate, *types)
            return
        count, columns = x.shape
        if x.dtype != torch.bfloat16 or native.level() in ("avx2", "avx512"):
            x = x.float()
            missing = (-columns % 8, 0)
        else:  # whole tiles
            missing = (-columns % 32, -count % 16) if native.level() == "amx" else (-columns % 8, 0)
        if any(missing):
            x = functional.pad(x, (0, missing[0], 0, missing[1]))
        _weight_only.call(x.data_ptr(), x.shape[1], count, *pointers, *self._sizes, gate, DTYPES[x.dtype], *types)


def new_weight(
    out_features: int, in_features: int, dtype: torch.dtype, scheme: Quantization, gated: bool
) -> QuantizedWeight:
    if dtype not in FLOATS:
        return eager.new_weight(out_features, in_features, dtype, scheme, gated)
    return PackedWeight(out_features, in_features, dtype, scheme, gated)
