"""Quantised products beside torch's in 16 bits."""

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.linear import fill, linear
from vllm_kernels.ops.quantization import new_weight

_ROWS = slice(0, 4)


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> list[Case]:
    """All of them; inputs are random and made here."""
    out_features, in_features = sizes(4096, 48), sizes(14336, 320)
    found = [
        _product("int4 weights", rows, out_features, in_features, 4, 128, None, device, dtype, peer_goal=2.5)
        for rows in (1, 16)
    ]
    found.append(_product("int8 weights", 16, out_features, in_features, 8, None, None, device, dtype))
    square = sizes(4096, 64)
    found.append(_product("int8 by int8", square, square, square, 8, None, 8, device, dtype))
    found.append(_product("int4 weights", square, square, square, 4, 128, None, device, dtype))
    return found


def _product(
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
