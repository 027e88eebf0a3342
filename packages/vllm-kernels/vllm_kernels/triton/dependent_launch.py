"""Kernels that begin while the one before them still runs: programmatic dependent launches, on Hopper and later.

A step with few rows is many short kernels. Each needs a microsecond or two to start, and its memory is idle meanwhile;
started early, a kernel's programs are in place, and may have asked for weights, when what they wait for has ended.

What makes that safe is one rule for every kernel, which ``compilation`` holds them to: nothing but weights is touched
before ``wait``, and nobody ends without it. So a kernel that has ended has waited for the one before it, that one for
its own, and whoever waits for the last one has waited for all.
"""

import os
from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vllm_kernels.triton.device import family_of, interpreted

VARIABLE = "VLLM_KERNELS_PDL"
"""0: every kernel starts when the one before it has ended. To tell what it is good for."""
PARAMETER = "PDL"
"""Of every kernel: whether it may have been started early."""


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


def are_compiled(family: str) -> bool:
    """Whether GPUs of a family know the instructions: since Hopper."""
    return family != "sm_80"


@cache
def are_used(device: torch.device) -> bool:
    """Whether kernels on ``device`` are started early."""
    wanted = os.environ.get(VARIABLE, "1") != "0"
    return wanted and device.type == "cuda" and not interpreted() and are_compiled(family_of(device))
