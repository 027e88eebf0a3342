"""State-space layers."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_MAMBA
from vllm_engine.config.groups.types import NonNegative
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Kernels and state of state-space layers."""

    mamba_backend: Literal["triton", "flashinfer", "cpu"] = option(
        "triton", help="kernels for state-space layers", unsupported=NO_MAMBA
    )
    enable_mamba_cache_stochastic_rounding: bool = option(
        False, help="round states stochastically when they are stored", unsupported=NO_MAMBA
    )
    mamba_cache_philox_rounds: NonNegative = option(
        0, help="rounds of the random generator for stochastic rounding", unsupported=NO_MAMBA
    )
