"""Choice of kernels."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_EXPERTS
from vllm_engine.config.option import key, option


@dataclass(frozen=True, kw_only=True)
class IrOpPriorityConfig:
    """For each operation the implementations to try, best first: ``cpu``, ``triton``, ``eager``, ``reference``,
    ``native``; empty: the best. ``cpu`` is C++ for a CPU, ``triton`` for a GPU, ``eager`` torch's own operators
    composed well.

    ``native`` is another name of ``reference``: plain torch.
    """

    rms_norm: list[str] = key([], help="implementations of RMS norm, best first")
    fused_add_rms_norm: list[str] = key([], help="implementations of RMS norm with a residual, best first")


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Which kernels serve an operation."""

    ir_op_priority: IrOpPriorityConfig = option(
        IrOpPriorityConfig(), help='implementations of operations, best first, such as {"rms_norm": ["reference"]}'
    )
    enable_flashinfer_autotune: bool | None = option(
        None,
        help="time FlashInfer's kernels at start",
        unsupported="this version does not use FlashInfer",
        possible=(False,),
    )
    moe_backend: Literal[
        "auto",
        "aiter",
        "cutlass",
        "deep_gemm",
        "deep_gemm_mega_moe",
        "emulation",
        "flashinfer_cutedsl",
        "flashinfer_cutlass",
        "flashinfer_trtllm",
        "humming",
        "marlin",
        "triton",
        "triton_unfused",
    ] = option("auto", help="kernels for mixtures of experts", unsupported=NO_EXPERTS)
