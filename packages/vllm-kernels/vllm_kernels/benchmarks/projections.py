"""Products of few rows in 16 bits, with all that is part of them, beside torch's operations one after the other."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.linear_weight import RowNorm
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight

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


def added(rows: int, out_features: int, in_features: int, device: torch.device, dtype: torch.dtype) -> Case:
    """``x W^T`` and a residual: projections out of attention and feed-forward layers."""
    x, dense = _numbers(rows, in_features, device, dtype), _numbers(out_features, in_features, device, dtype)
    residual = _numbers(rows, out_features, device, dtype)
    weight = new_weight(out_features, in_features, dtype, device)
    fill(weight, dense)
    return Case(
        "projection and residual",
        f"{rows} x {out_features} x {in_features}",
        lambda: linear(x, weight, residual=residual),
        lambda result: result,
        lambda: x.double() @ dense.double().T + residual.double(),
        5e-3,
        dense.nbytes + x.nbytes + 2 * residual.nbytes,
        2 * rows * out_features * in_features,
        peer=lambda: functional.linear(x, dense) + residual,
        peer_name="cuBLAS and a sum",
    )


def gated(rows: int, out_features: int, in_features: int, device: torch.device, dtype: torch.dtype) -> Case:
    """``silu(norm(x) G^T) * (norm(x) V^T)``: the first half of a feed-forward layer."""
    x, dense = _numbers(rows, in_features, device, dtype), _numbers(2 * out_features, in_features, device, dtype)
    dense /= in_features**0.5
    norm = RowNorm(_numbers(1, in_features, device, dtype)[0], EPS)
    weight = new_weight(2 * out_features, in_features, dtype, device, gated=True)
    fill(weight, dense)

    def by_torch() -> torch.Tensor:
        gate, value = functional.linear(functional.rms_norm(x, (in_features,), norm.weight, EPS), dense).chunk(2, -1)
        return functional.silu(gate) * value

    def exact() -> torch.Tensor:
        wide = x.double()
        normed = wide * (wide.square().mean(1, keepdim=True) + EPS).rsqrt() * norm.weight.double()
        gate, value = (normed @ dense.double().T).chunk(2, -1)
        return functional.silu(gate) * value

    return Case(
        "norm, projection and gate",
        f"{rows} x {out_features} x {in_features}",
        lambda: gated_linear(x, weight, "silu", norm=norm),
        lambda result: result,
        exact,
        1e-2,
        dense.nbytes + x.nbytes + rows * out_features * x.itemsize,
        4 * rows * out_features * in_features,
        peer=by_torch,
        peer_name="torch's four",
    )


def _numbers(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, columns, device=device).to(dtype)
