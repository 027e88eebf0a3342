import torch
import triton
import triton.language as tl

from vllm_kernels.eager import activation as eager
from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer
from vllm_kernels.triton.tuning import Choice, Tunable, Work

BLOCK = 1024


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation of fp32 values."""
    if KIND == "silu":
        result = x * tl.sigmoid(x)
    elif KIND == "gelu":
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh(u)) = sigmoid(2 u), without the cancellation.
        result = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        # Not tl.maximum, which drops NaN.
        result = tl.where(x < 0.0, 0.0, x)
    return result


@triton.jit
def apply_gate(gate, value, KIND: tl.constexpr):
    """``activate(gate) * value`` of fp32 numbers, or the clamped gate of gpt-oss."""
    if KIND == "swigluoai":
        # Not tl.minimum, which drops NaN.
        gate = tl.where(gate > 7.0, 7.0, gate)
        value = tl.where(value > 7.0, 7.0, tl.where(value < -7.0, -7.0, value))
        result = gate * tl.sigmoid(1.702 * gate) * (value + 1.0)
    else:
        result = activate(gate, KIND) * value
    return result


@triton.jit
def gated_kernel(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr):
    """``out[row] = apply_gate(x[row, :WIDTH], x[row, WIDTH:])`` for one row and BLOCK columns."""
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = column < WIDTH
    gate = tl.load(x + row * (2 * WIDTH) + column, mask=present, other=0.0).to(tl.float32)
    value = tl.load(x + row * (2 * WIDTH) + WIDTH + column, mask=present, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, apply_gate(gate, value, KIND).to(out.dtype.element_ty), mask=present)


@triton.jit
def plain_kernel(x, out, size, BLOCK: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr):
    """``out = activate(x)`` for BLOCK entries."""
    wait_for_earlier(PDL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    present = place < size
    values = tl.load(x + place, mask=present, other=0.0).to(tl.float32)
    tl.store(out + place, activate(values, KIND).to(out.dtype.element_ty), mask=present)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return gated_by(x, "silu") if x.dtype in FLOATS else eager.silu_and_mul(x)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return gated_by(x, "gelu") if x.dtype in FLOATS else eager.gelu_and_mul(x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    return gated_by(x, "gelu_tanh") if x.dtype in FLOATS else eager.gelu_tanh_and_mul(x)


def swigluoai_and_mul(x: torch.Tensor) -> torch.Tensor:
    return gated_by(x, "swigluoai") if x.dtype in FLOATS else eager.swigluoai_and_mul(x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, "gelu") if x.dtype in FLOATS else eager.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, "gelu_tanh") if x.dtype in FLOATS else eager.gelu_tanh(x)


def relu(x: torch.Tensor) -> torch.Tensor:
    return _plain(x, "relu") if x.dtype in FLOATS else eager.relu(x)


def gated_by(x: torch.Tensor, kind: str) -> torch.Tensor:
    """``activate(x[..., :d]) * x[..., d:]``, of one of ``FLOATS``."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    rows = out.numel() // width if width else 0
    choice = TILES.choose(x.device, x_bits=8 * x.itemsize)
    gated.launch((rows, triton.cdiv(width, choice["BLOCK"])), x, out, WIDTH=width, KIND=kind, **choice)
    return out


def _plain(x: torch.Tensor, kind: str) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    plain.launch((triton.cdiv(x.numel(), BLOCK),), x, out, x.numel(), BLOCK=BLOCK, KIND=kind)
    return out


def _rule(x_bits: int) -> Choice:
    return {"BLOCK": BLOCK, "num_warps": 4}


def _candidates(x_bits: int) -> dict[str, tuple[int, ...]]:
    return {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (2, 4, 8)}


def _work(x_bits: int, BLOCK: int, num_warps: int) -> Work:
    return Work("memory", BLOCK, 2 * BLOCK * x_bits // 8)


TILES = Tunable(
    "gated_kernel", ("x_bits",), _rule, _candidates, lambda family: [{"x_bits": bits} for bits in (16, 32)], _work
)


def _gated_configurations(family: str) -> list[Configuration]:
    widths = (3072, 4864, 11008, 14336, 28672)
    pairs = [(kind, width) for kind in ("silu", "gelu", "gelu_tanh") for width in widths]
    found = []
    for dtype in FLOATS:
        choice = TILES.choose(family, x_bits=8 * dtype.itemsize)
        for kind, width in [*pairs, ("swigluoai", 2880)]:
            types = {"x": pointer(dtype), "out": pointer(dtype)}
            constants = {"WIDTH": width, "BLOCK": choice["BLOCK"], "KIND": kind}
            found.append(Configuration(types, constants, choice["num_warps"]))
    return found


def _plain_configurations(family: str) -> list[Configuration]:
    return [
        Configuration({"x": pointer(dtype), "out": pointer(dtype), "size": "i32"}, {"BLOCK": BLOCK, "KIND": kind})
        for dtype in FLOATS
        for kind in ("gelu", "gelu_tanh", "relu")
    ]


gated = Kernel(gated_kernel, _gated_configurations)
plain = Kernel(plain_kernel, _plain_configurations)
