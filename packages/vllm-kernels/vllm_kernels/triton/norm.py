import torch
import triton
import triton.language as tl

from vllm_kernels.eager import norm as eager
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer, power_of_two
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Where, Work

# A row is held in registers whole. Wider ones, which no model has, are left to torch.
WIDEST = 1 << 16
# Entries that one program takes: short rows (heads, small models) share one.
ENTRIES = 2048


@triton.jit
def normalise(
    values,
    present,
    column,
    weight,
    bias,
    eps,
    HIDDEN: tl.constexpr,
    CENTERED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """The norm of whole rows: fp32 ``[rows, columns]``, with zeros where none is ``present``."""
    if CENTERED:
        mean = tl.sum(values, axis=1) / HIDDEN
        values = tl.where(present, values - mean[:, None], 0.0)
    variance = tl.sum(values * values, axis=1) / HIDDEN
    values = values * (1.0 / tl.sqrt(variance + eps))[:, None]
    if weight is not None:
        scale = tl.load(weight + column, mask=column < HIDDEN, other=0.0).to(tl.float32)
        if UNIT_OFFSET:
            scale = scale + 1.0
        values = values * scale[None, :]
    if bias is not None:
        values = values + tl.load(bias + column, mask=column < HIDDEN, other=0.0).to(tl.float32)[None, :]
    return values


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    new_residual,
    num_rows,
    eps,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CENTERED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    PDL: tl.constexpr,
):
    """RMS norm, or with CENTERED layer norm, of ROWS rows [HIDDEN]; of ``x + residual`` where there is a residual."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    offsets = row[:, None] * HIDDEN + column[None, :]
    present = (row < num_rows)[:, None] & (column < HIDDEN)[None, :]
    values = tl.load(x + offsets, mask=present, other=0.0)
    if residual is not None:
        wide = values.to(tl.float32) + tl.load(residual + offsets, mask=present, other=0.0).to(tl.float32)
        values = wide.to(x.dtype.element_ty)  # rounded before it is normalised, as if the sum were made apart
        tl.store(new_residual + offsets, values, mask=present)
    values = normalise(values.to(tl.float32), present, column, weight, bias, eps, HIDDEN, CENTERED, UNIT_OFFSET)
    tl.store(out + offsets, values.to(out.dtype.element_ty), mask=present)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool) -> torch.Tensor:
    if not _taken(x):
        return eager.rms_norm(x, weight, eps, unit_offset)
    return _normalise(x, None, weight, None, eps, centered=False, unit_offset=unit_offset)[0]


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if not _taken(x):
        return eager.fused_add_rms_norm(x, residual, weight, eps, unit_offset)
    return _normalise(x, residual, weight, None, eps, centered=False, unit_offset=unit_offset)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    if not _taken(x):
        return eager.layer_norm(x, weight, bias, eps)
    return _normalise(x, None, weight, bias, eps, centered=True, unit_offset=False)[0]


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    if not _taken(x):
        return eager.fused_add_layer_norm(x, residual, weight, bias, eps)
    return _normalise(x, residual, weight, bias, eps, centered=True, unit_offset=False)


def _taken(x: torch.Tensor) -> bool:
    return x.dtype in FLOATS and 0 < x.shape[-1] <= WIDEST


def _normalise(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    centered: bool,
    unit_offset: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and the sum (the result again where there is no residual)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    new_residual = torch.empty_like(x) if residual is not None else out
    hidden = x.shape[-1]
    num_rows = x.numel() // hidden
    sizes = choose(x.device, hidden, x.dtype)
    norm.launch(
        (triton.cdiv(num_rows, sizes["ROWS"]),),
        x,
        None if residual is None else residual.contiguous(),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        out,
        new_residual,
        num_rows,
        eps,
        HIDDEN=hidden,
        CENTERED=centered,
        UNIT_OFFSET=unit_offset,
        **sizes,
    )
    return out, new_residual


def tile(hidden: int) -> tuple[int, int, int]:
    """Columns (a power of two), rows and warps of a program: 16 bytes a load and thread at 16 bits, or more."""
    block = power_of_two(hidden, 16)
    rows = max(1, ENTRIES // block)
    return block, rows, min(max(block * rows // 512, 1), 16)


def choose(where: Where, hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """Columns, rows and warps of a launch."""
    columns = power_of_two(hidden, 16)
    return {"BLOCK": columns, **TILES.choose(where, columns=columns, x_bits=8 * dtype.itemsize)}


def _rule(columns: int, x_bits: int) -> Choice:
    _, rows, num_warps = tile(columns)
    return {"ROWS": rows, "num_warps": num_warps}


def _candidates(columns: int, x_bits: int) -> dict[str, tuple[int, ...]]:
    most = max(1, 4 * ENTRIES // columns)
    return {"ROWS": tuple(2**power for power in range(most.bit_length())), "num_warps": (1, 2, 4, 8, 16)}


def _work(columns: int, x_bits: int, ROWS: int, num_warps: int) -> Work:
    return Work("memory", columns * ROWS, columns * ROWS * x_bits // 8)


def _classes(family: str) -> list[ShapeClass]:
    columns = sorted({power_of_two(hidden, 16) for hidden in HIDDEN_SIZES})
    return [{"columns": size, "x_bits": bits} for size in columns for bits in (16, 32)]


HIDDEN_SIZES = (64, 128, 896, 1024, 2048, 2560, 3584, 4096, 5120, 8192, 16384)
"""Of models, and of their heads."""

TILES = Tunable("norm_kernel", ("columns", "x_bits"), _rule, _candidates, _classes, _work)


def _configurations(family: str) -> list[Configuration]:
    found = []
    for dtype in FLOATS:
        for hidden in HIDDEN_SIZES:
            sizes = choose(family, hidden, dtype)
            for residual in (False, True):
                for centered, weighted, biased, offset in (
                    (False, True, False, False),
                    (False, True, False, True),
                    (True, True, True, False),
                    (True, True, False, False),
                    (True, False, False, False),
                ):
                    kind = pointer(dtype)
                    types = {
                        "x": kind,
                        "residual": kind if residual else None,
                        "weight": kind if weighted else None,
                        "bias": kind if biased else None,
                        "out": kind,
                        "new_residual": kind,
                        "num_rows": "i32",
                        "eps": "fp32",
                    }
                    constants = {
                        "HIDDEN": hidden,
                        "BLOCK": sizes["BLOCK"],
                        "ROWS": sizes["ROWS"],
                        "CENTERED": centered,
                        "UNIT_OFFSET": offset,
                    }
                    found.append(Configuration(types, constants, sizes["num_warps"]))
    return found


norm = Kernel(norm_kernel, _configurations)
