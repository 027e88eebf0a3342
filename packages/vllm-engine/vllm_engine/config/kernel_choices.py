"""Which kernels the settings ask for, by the names of their operations in ``vllm_kernels``."""

import os

from vllm_engine import envs
from vllm_engine.config.device import DeviceKind
from vllm_engine.config.groups import EngineConfig
from vllm_engine.config.names import refuse_name
from vllm_engine.errors import ConfigError

_ATTENTION = {"CPU_ATTN": "cpu", "TRITON_ATTN": "triton", "TORCH_SDPA": "eager", "REFERENCE": "reference"}
"""Attention backend -> face of ``vllm_kernels``."""

_NORMS = {"cpu": "cpu", "triton": "triton", "eager": "eager", "reference": "reference", "native": "reference"}
"""Implementation of a norm -> face. ``native`` is plain torch."""

_NOT_ON = {
    ("cuda", "cpu"): "these kernels are for a CPU, and the device is a GPU",
    ("cpu", "triton"): "these kernels are for a GPU, and the device is the CPU (TRITON_INTERPRET=1 runs them anywhere)",
}
"""Device and face that do not go together, with the reason."""

_ELSEWHERE = {
    **dict.fromkeys(
        """
        B12X FLASHINFER FLASH_ATTN FLASH_ATTN_DIFFKV FLEX_ATTENTION HPC_ATTN ROCM_AITER_FA ROCM_AITER_UNIFIED_ATTN
        ROCM_ATTN ROCM_OCTAVE ROCM_SEGMENTED_ATTN TRITON_ATTN_DIFFKV TRITON_FLASHINFER TRITON_FLASH_ATTN
        TURBOQUANT ULTRAQUANT XFORMERS
        """.split(),
        "this version has kernels of its own: CPU_ATTN for a CPU, TRITON_ATTN for a GPU",
    ),
    **dict.fromkeys(
        """
        AMX_MLA CPU_MLA CUTLASS_MLA CUTLASS_MSA FLASHINFER_MLA FLASHINFER_MLA_SPARSE FLASHINFER_MLA_SPARSE_DSV4
        FLASHINFER_MLA_SPARSE_DSV41 FLASHINFER_MLA_SPARSE_SM120 FLASHINFER_MLA_SPARSE_SM90 FLASHMLA
        FLASHMLA_MEGA_ATTN_DSV41 FLASHMLA_SPARSE FLASHMLA_SPARSE_DSV4 FLASHMLA_SPARSE_DSV41 FLASH_ATTN_MLA
        FLASH_ATTN_MLA_SPARSE FLASH_ATTN_MLA_SPARSE_FA4 GDN_ATTN LINEAR MAMBA1 MAMBA2 MINIMAX_M3_SPARSE NO_ATTENTION
        ROCM_AITER_MLA ROCM_AITER_MLA_SPARSE ROCM_AITER_TRITON_MLA ROCM_FLASHMLA_SPARSE_DSV4
        ROCM_FLASHMLA_SPARSE_DSV41 SHORT_CONV STEP5_DSA TOKENSPEED_MLA TRITON_MLA TRITON_MSA XPU_MLA_SPARSE
        """.split(),
        "no model of this version has such layers",
    ),
    "CUSTOM": "this version takes no kernels from plugins",
}
"""Documented backends that this version does not have, with the reason."""


def kernel_faces(config: EngineConfig) -> dict[str, str]:
    """Operation (``attention``, ``norm.rms_norm``) -> face, for those that the settings choose.

    ``attention_backend`` wins over the environment variable ``VLLM_ATTENTION_BACKEND``, its older spelling.

    Raises:
        ConfigError: for kernels that are not known, or not there.
    """
    faces: dict[str, str] = {}
    field, backend = "attention_backend", config.attention.backend
    if backend is None:
        field, backend = "VLLM_ATTENTION_BACKEND", envs.get("VLLM_ATTENTION_BACKEND")
    if backend:
        refuse_name(field, backend, _ATTENTION, _ELSEWHERE)
        faces["attention"] = _face(field, backend, _ATTENTION[backend.upper()], config.device.kind)
    priority = config.kernel.ir_op_priority
    for function, names in (("rms_norm", priority.rms_norm), ("fused_add_rms_norm", priority.fused_add_rms_norm)):
        for name in names:
            refuse_name(f"ir_op_priority.{function}", name, _NORMS)
        if names:
            field, face = f"ir_op_priority.{function}", _NORMS[names[0].lower()]
            faces[f"norm.{function}"] = _face(field, names[0], face, config.device.kind)
    return faces


def _face(field: str, name: str, face: str, device: DeviceKind) -> str:
    """The face. Raises ``ConfigError`` where it is not for the device."""
    because = _NOT_ON.get((device, face))
    if because is None or (face == "triton" and os.environ.get("TRITON_INTERPRET", "") not in ("", "0")):
        return face
    raise ConfigError(f"{field}={name} cannot be honoured: {because}", field=field)
