"""Products of few rows, with all that is part of them, beside torch's operations in 16 bits one after the other."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.linear_weight import LinearWeight, RowNorm
from vllm_kernels.ops.fp8 import new_weight as new_fp8_weight
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight
from vllm_kernels.ops.quantization import new_weight as new_quantized_weight
from vllm_kernels.reference.fp8 import rounded
from vllm_kernels.rounded_input_weight import RoundedInputWeight

EPS = 1e-6


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """Projections of the Qwen 3 0.6B and the Llama 8B shapes, each made as it is asked for; inputs are random."""
    small, large = sizes(1024, 96), sizes(4096, 160)
    yield added(1, small, sizes(2048, 80), device, dtype)
    yield gated(1, sizes(3072, 40), small, device, dtype)
    for rows in (1, 16):
        yield gated(rows, sizes(14336, 56), large, device, dtype)
        yield added(rows, large, sizes(14336, 200), device, dtype)
    yield added(1, sizes(128256, 300), large, device, dtype)
    for rows in (1, 16):
        yield gated(rows, sizes(14336, 56), large, device, dtype, group=128)
        yield added(rows, large, sizes(14336, 200), device, dtype, group=128)


def added(
    rows: int,
    out_features: int,
    in_features: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    group: int | None = None,
    fp8: bool = False,
) -> Case:
    """``x W^T`` and a residual: projections out of attention and feed-forward layers. ``group``, ``fp8``: see
    ``_weight``."""
    x, dense = _numbers(rows, in_features, device, dtype), _numbers(out_features, in_features, device, dtype)
    residual = _numbers(rows, out_features, device, dtype)
    weight = _weight(dense, group, fp8, gated=False)
    return Case(
        f"projection and residual{_said(group, fp8)}",
        f"{rows} x {out_features} x {in_features}",
        lambda: linear(x, weight, residual=residual),
        lambda result: result,
        lambda: (_rounded(x) if fp8 else x.double()) @ _matrix(weight, dense).T + residual.double(),
        5e-3,
        weight.nbytes + x.nbytes + 2 * residual.nbytes,
        2 * rows * out_features * in_features,
        peer=lambda: functional.linear(x, dense) + residual,
        peer_name="cuBLAS and a sum",
    )


def gated(
    rows: int,
    out_features: int,
    in_features: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    group: int | None = None,
    fp8: bool = False,
) -> Case:
    """``silu(norm(x) G^T) * (norm(x) V^T)``: the first half of a feed-forward layer. ``group``, ``fp8``: see
    ``_weight``."""
    x, dense = _numbers(rows, in_features, device, dtype), _numbers(2 * out_features, in_features, device, dtype)
    dense /= in_features**0.5
    norm = RowNorm(_numbers(1, in_features, device, dtype)[0], EPS)
    weight = _weight(dense, group, fp8, gated=True)

    def by_torch() -> torch.Tensor:
        gate, value = functional.linear(functional.rms_norm(x, (in_features,), norm.weight, EPS), dense).chunk(2, -1)
        return functional.silu(gate) * value

    def exact() -> torch.Tensor:
        wide = x.double()
        normed = wide * (wide.square().mean(1, keepdim=True) + EPS).rsqrt() * norm.weight.double()
        if fp8:
            normed = _rounded(normed.to(dtype))
        gate, value = (normed @ _matrix(weight, dense).T).chunk(2, -1)
        return functional.silu(gate) * value

    return Case(
        f"norm, projection and gate{_said(group, fp8)}",
        f"{rows} x {out_features} x {in_features}",
        lambda: gated_linear(x, weight, "silu", norm=norm),
        lambda result: result,
        exact,
        1e-2,
        weight.nbytes + x.nbytes + rows * out_features * x.itemsize,
        4 * rows * out_features * in_features,
        peer=by_torch,
        peer_name="torch's four",
    )


def _weight(dense: torch.Tensor, group: int | None, fp8: bool, *, gated: bool) -> LinearWeight:
    """In its own type, in ``fp8`` with a scale for each row, or in 4 bits with one for each ``group`` of columns."""
    rows, columns = dense.shape
    if fp8:
        weight = new_fp8_weight(rows, columns, dense.dtype, dense.device, gated=gated)
    elif group is None:
        weight = new_weight(rows, columns, dense.dtype, dense.device, gated=gated)
    else:
        weight = new_quantized_weight(
            rows, columns, dense.dtype, dense.device, bits=4, group_size=group, activation_bits=None, gated=gated
        )
    fill(weight, dense)
    return weight


def _matrix(weight: LinearWeight, dense: torch.Tensor) -> torch.Tensor:
    """What a weight stands for, in float64."""
    if isinstance(weight, RoundedInputWeight):
        return weight.rows(torch.arange(len(dense), device=dense.device)).double()
    return dense.double()


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """What rows are after they were rounded to fp8, in float64."""
    entries, scales = rounded(x, None)
    return entries.double() * scales.double()


def _said(group: int | None, fp8: bool) -> str:
    return ", fp8" if fp8 else "" if group is None else ", int4 weights"


def _numbers(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)
