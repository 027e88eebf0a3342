"""Kernels that begin while the one before them still runs: programmatic dependent launches, on Hopper and later.

A step with few rows is many short kernels. Each needs a microsecond or two to start, and its memory is idle meanwhile;
started early, a kernel's programs are in place, and may have asked for weights, when what they wait for has ended.

What makes that safe is one rule for every kernel, which ``compilation`` holds them to: nothing but weights is touched
before ``wait``, and nobody ends without it. So a kernel that has ended has waited for the one before it, that one for
its own, and whoever waits for the last one has waited for all.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vllm_kernels.triton.device import family_of, interpreted
from vllm_kernels.variables import yes_or_no

VARIABLE = "VLLM_KERNELS_PDL"
"""0: every kernel starts when the one before it has ended. To measure what that is worth."""
PARAMETER = "PDL"
"""Of every kernel: whether it may have been started early."""
ASKED = tl.constexpr(16384)
"""Bytes of weights that a program asks for before it waits: some programs on each multiprocessor have then asked for as
much as an H100's memory delivers in the time until it delivers anything."""
_SECTOR = tl.constexpr(32)
"""Bytes that are asked for at a time: the least that the L2 cache fetches."""


@triton.jit
def wait_for_earlier(PDL: tl.constexpr):
    """The first statement of a kernel: the next one may start, and all before have ended."""
    let_next_start(PDL)
    wait(PDL)


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Programs of the next kernel take the place of this one's as soon as all of these have begun."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Until the kernels before have ended, and what they wrote can be read."""
    if PDL:
        gdc_wait()


@triton.jit
def ask_for_rows(table, row, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr, BYTES: tl.constexpr, PDL: tl.constexpr):
    """Have the first BYTES, a power of two, of the rows ``row [n]`` of a weight ``[ROWS, ..]`` brought to the L2 cache.

    Before ``wait``: no kernel writes weights. Rows beyond the last count as the last.
    """
    if PDL:
        place = row[:, None].to(tl.int64) * ROW_BYTES + tl.arange(0, BYTES // _SECTOR)[None, :] * _SECTOR
        place = tl.minimum(place, max(ROWS * ROW_BYTES - _SECTOR, 0))
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0",
            "=r,l",
            [table.to(tl.int64) + place],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def ask_for_weights(
    weight,
    norm,
    column,
    OUT: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    IN: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """ASKED bytes of rows ``column [BLOCK_N]`` of a projection's weight ``[OUT or 2 * OUT, ..]``; some of its norm."""
    ALL: tl.constexpr = OUT * (2 if GATED else 1)
    BYTES: tl.constexpr = ASKED // (BLOCK_N * (2 if GATED else 1))
    ask_for_rows(weight, column, ALL, ROW_BYTES, BYTES, PDL)
    if GATED:
        ask_for_rows(weight, OUT + column, ALL, ROW_BYTES, BYTES, PDL)
    if norm is not None:
        ask_for_rows(norm, tl.arange(0, 1), 1, IN * norm.dtype.element_ty.primitive_bitwidth // 8, 2048, PDL)


def are_compiled(family: str) -> bool:
    """Whether GPUs of a family know the instructions: since Hopper."""
    return family != "sm_80"


@cache
def are_used(device: torch.device) -> bool:
    """Whether kernels on ``device`` are started early; as the environment variable says when it is first asked."""
    if device.type != "cuda" or interpreted() or not are_compiled(family_of(device)):
        return False
    return yes_or_no(VARIABLE, default=True)
