"""Quantised products beside torch's in 16 bits."""

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.fp8 import new_weight as new_fp8_weight
from vllm_kernels.ops.linear import fill, linear
from vllm_kernels.ops.mxfp4 import new_weight as new_mxfp4_weight
from vllm_kernels.ops.quantization import new_weight
from vllm_kernels.reference.fp8 import rounded
from vllm_kernels.triton.device import has_fp8

_ROWS = slice(0, 4)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> list[Case]:
    """All of them; inputs are random and made here."""
    out_features, in_features = sizes(4096, 48), sizes(14336, 320)
    found = [
        product("int4 weights", rows, out_features, columns, 4, 128, None, device, dtype, peer_goal=2.5)
        for columns in (in_features, sizes(4096, 256))
        for rows in (1, 16)
    ]
    found.append(product("int4 weights", 16, out_features, in_features, 4, 32, None, device, dtype))
    found.append(product("int4 by int8", 16, out_features, in_features, 4, 128, 8, device, dtype))
    found.append(product("int8 weights", 16, out_features, in_features, 8, None, None, device, dtype))
    square = sizes(4096, 64)
    found.append(product("int8 by int8", square, square, square, 8, None, 8, device, dtype))
    found.append(product("int4 weights", square, square, square, 4, 128, None, device, dtype))
    found += [
        fp8_product(16, out_features, in_features, None, device, dtype),
        fp8_product(square, square, square, None, device, dtype, peer_goal=1.3),
        fp8_product(sizes(4096, 64), sizes(4096, 128), sizes(4096, 128), 128, device, dtype),
    ]
    if has_fp8(device):  # else torch has no such product
        found.append(fp8_product(square, square, square, None, device, dtype, peer="_scaled_mm"))
    found += [_mxfp4_product(rows, out_features, sizes(4096, 1024), device, dtype) for rows in (16, square)]
    return found


def _mxfp4_product(rows: int, out_features: int, in_features: int, device: torch.device, dtype: torch.dtype) -> Case:
    x = torch.randn(rows, in_features, device=device).to(dtype)
    dense = torch.randn(out_features, in_features, device=device).to(dtype)
    weight = new_mxfp4_weight(out_features, in_features, dtype, device)
    fill(weight, dense)
    ids = torch.arange(out_features, device=device)
    return Case(
        "MXFP4 weights",
        f"{rows} x {out_features} x {in_features}",
        lambda: linear(x, weight),
        lambda result: result[_ROWS],
        lambda: x[_ROWS].double() @ weight.rows(ids).double().T,
        5e-3,
        weight.nbytes + x.nbytes + rows * out_features * x.itemsize,
        2 * rows * out_features * in_features,
        "memory" if rows <= 64 else "matrix",
        peer=lambda: torch.nn.functional.linear(x, dense),
        peer_name="cuBLAS",
    )


def fp8_product(
    rows: int,
    out_features: int,
    in_features: int,
    block: int | None,
    device: torch.device,
    dtype: torch.dtype,
    peer_goal: float | None = None,
    peer: str = "cuBLAS",
) -> Case:
    """Activations are rounded on the way. ``peer``: ``cuBLAS`` in 16 bits, or ``_scaled_mm`` without the rounding."""
    x = torch.randn(rows, in_features, device=device).to(dtype)
    dense = torch.randn(out_features, in_features, device=device).to(dtype)
    with device:
        weight = new_fp8_weight(out_features, in_features, dtype, device, block=block)
        fill(weight, dense)
    ids = torch.arange(out_features, device=device)
    entries, scales = rounded(x, None)
    weight_entries, weight_scales = rounded(dense, None)

    def by_torch() -> torch.Tensor:
        if peer == "cuBLAS":
            return torch.nn.functional.linear(x, dense)
        return torch._scaled_mm(entries, weight_entries.T, scales, weight_scales.T, out_dtype=dtype)

    return Case(
        f"fp8 by fp8{'' if block is None else f', blocks of {block}'}",
        f"{rows} x {out_features} x {in_features}",
        lambda: linear(x, weight),
        lambda result: result[_ROWS],
        lambda: x[_ROWS].double() @ weight.rows(ids).double().T,
        5e-2,  # a rounded activation is within 1/16 of itself
        weight.nbytes + x.nbytes + rows * out_features * x.itemsize,
        2 * rows * out_features * in_features,
        "memory" if rows <= 64 else "matrix",
        peer=by_torch,
        peer_name=peer,
        peer_goal=peer_goal,
    )


def product(
    name: str,
    rows: int,
    out_features: int,
    in_features: int,
    bits: int,
    group_size: int | None,
    activation_bits: int | None,
    device: torch.device,
    dtype: torch.dtype,
    peer_goal: float | None = None,
) -> Case:
    """Small integers, by activations in 16 or in 8 bits; beside torch's product in 16."""
    x = torch.randn(rows, in_features, device=device).to(dtype)
    dense = torch.randn(out_features, in_features, device=device).to(dtype)
    with device:
        weight = new_weight(
            out_features,
            in_features,
            dtype,
            device,
            bits=bits,
            group_size=group_size,
            activation_bits=activation_bits,
        )
        fill(weight, dense)
    ids = torch.arange(out_features, device=device)

    def exact() -> torch.Tensor:
        # Rounded activations are within 1/254 of the largest of a group, the tolerance below.
        return x[_ROWS].double() @ weight.rows(ids).double().T

    return Case(
        name,
        f"{rows} x {out_features} x {in_features}",
        lambda: linear(x, weight),
        lambda result: result[_ROWS],
        exact,
        2e-2 if activation_bits else 5e-3,
        weight.nbytes + x.nbytes + rows * out_features * x.itemsize,
        2 * rows * out_features * in_features,
        "memory" if rows <= 64 else "matrix",
        peer=lambda: torch.nn.functional.linear(x, dense),
        peer_name="cuBLAS",
        peer_goal=peer_goal,
    )
