"""Products of a single row by weights of 16 and 32 bits: the projections of a decode step with one sequence.

As in ``few_rows``, what is around the product is part of it. Tensor cores have nothing to do with one row, and a warp
would wait for each of their sums; here each thread multiplies columns of its own, and threads add up at the end.
"""

import torch
import triton
import triton.language as tl

from vllm_kernels.linear_weight import Activation, RowNorm
from vllm_kernels.triton.activation import apply_gate
from vllm_kernels.triton.dependent_launch import ask_for_weights, let_next_start, wait
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.projection_shapes import FIELDS, class_of, classes, compiled_types
from vllm_kernels.triton.tuning import Choice, Tunable, Work


@triton.jit
def one_row_kernel(
    x,
    norm,
    weight,
    bias,
    residual,
    out,
    eps,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_N columns of ``out [OUT]``: ``x [IN]`` by rows of the weight.

    With an ACTIVATION the weight has ``2 * OUT`` rows, the gate's above the value's, and ``bias`` as many entries. With
    a ``norm [IN]`` numbers of ``x`` are multiplied by it first, and sums divided by the root of their mean square.
    """
    let_next_start(PDL)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ROW_BYTES: tl.constexpr = IN * weight.dtype.element_ty.primitive_bitwidth // 8
    ask_for_weights(weight, norm, column, OUT, ROW_BYTES, IN, ACTIVATION is not None, BLOCK_N, PDL)
    wait(PDL)
    in_out = column < OUT
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    other_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(0, IN, BLOCK_K, num_stages=STAGES):
        inner = start + tl.arange(0, BLOCK_K)
        values = tl.load(x + inner, mask=inner < IN, other=0.0).to(tl.float32)
        if norm is not None:
            squares += values * values
            factor = tl.load(norm + inner, mask=inner < IN, other=0.0).to(tl.float32)
            if UNIT_OFFSET:
                factor += 1.0
            values *= factor
        place = column[:, None].to(tl.int64) * IN + inner[None, :]
        present = in_out[:, None] & (inner < IN)[None, :]
        sums += tl.load(weight + place, mask=present, other=0.0).to(tl.float32) * values[None, :]
        if ACTIVATION is not None:
            below = weight + OUT * IN
            other_sums += tl.load(below + place, mask=present, other=0.0).to(tl.float32) * values[None, :]
    total = tl.sum(sums, axis=1)
    other = tl.sum(other_sums, axis=1)
    if norm is not None:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / IN + eps)
        total *= scale
        other *= scale
    if bias is not None:
        total += tl.load(bias + column, mask=in_out, other=0.0).to(tl.float32)
        if ACTIVATION is not None:
            other += tl.load(bias + OUT + column, mask=in_out, other=0.0).to(tl.float32)
    if ACTIVATION is not None:
        total = apply_gate(total, other, ACTIVATION)
    if residual is not None:
        total += tl.load(residual + column, mask=in_out, other=0.0).to(tl.float32)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=in_out)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    activation: Activation | None,
    norm: RowNorm | None,
) -> None:
    """``out = norm(x) @ weight.T + bias + residual``, or ``activation(gate) * value``: as ``few_rows.multiply``.

    ``x`` and ``out`` have one row. All is computed in fp32 and rounded once, at the end; so any type may have a norm.
    """
    out_features = out.shape[1]
    choice = TILES.choose(x.device, **class_of(out_features, x.dtype, activation))
    one_row.launch(
        (triton.cdiv(out_features, choice["BLOCK_N"]),),
        x,
        None if norm is None else norm.weight,
        weight,
        bias,
        residual,
        out,
        0.0 if norm is None else norm.eps,
        OUT=out_features,
        IN=x.shape[1],
        UNIT_OFFSET=norm is not None and norm.unit_offset,
        ACTIVATION=activation,
        STAGES=choice["num_stages"],
        **choice,
    )


def _rule(out: int, x_bits: int, gated: int) -> Choice:
    # A program for each few columns, so that small weights are read by all multiprocessors, but not so many that most
    # of their time is their beginning.
    block_n = 8 if out <= 4096 else 16 if out <= 16384 else 32
    columns = 512 if block_n * (1 + gated) <= 16 else 256
    return {
        "BLOCK_N": block_n,
        "BLOCK_K": columns * 16 // x_bits,
        "num_warps": 4,
        "num_stages": 5 if block_n * columns * (1 + gated) <= 4096 else 4,
    }


def _candidates(out: int, x_bits: int, gated: int) -> dict[str, tuple[int, ...]]:
    return {
        "BLOCK_N": (4, 8, 16, 32, 64),
        "BLOCK_K": tuple(bits // x_bits for bits in (2048, 4096, 8192, 16384)),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6, 8),
    }


def _work(out: int, x_bits: int, gated: int, BLOCK_N: int, BLOCK_K: int, num_warps: int, num_stages: int) -> Work:
    columns = BLOCK_N * (1 + gated)
    return Work("memory", columns * BLOCK_K, columns * BLOCK_K * x_bits // 8)


TILES = Tunable("one_row_kernel", FIELDS, _rule, _candidates, classes, _work)


def _configurations(family: str) -> list[Configuration]:
    found = []
    for each, dtype, types in compiled_types():
        choice = TILES.choose(family, **class_of(each.out_features, dtype, each.activation))
        constants = {
            "OUT": each.out_features,
            "IN": each.in_features,
            "UNIT_OFFSET": types["norm"] is not None and each.plus_one,
            "ACTIVATION": each.activation,
            "BLOCK_N": choice["BLOCK_N"],
            "BLOCK_K": choice["BLOCK_K"],
            "STAGES": choice["num_stages"],
        }
        found.append(Configuration({**types, "eps": "fp32"}, constants, choice["num_warps"], choice["num_stages"]))
    return found


one_row = Kernel(one_row_kernel, _configurations)
