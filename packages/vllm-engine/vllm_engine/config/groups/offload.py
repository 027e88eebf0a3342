"""Weights outside of device memory."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_OFFLOAD
from vllm_engine.config.groups.types import NonNegative, NonNegativeNumber, Positive
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """Which weights stay in main memory when the device's is too small."""

    offload_backend: Literal["auto", "prefetch", "uva"] = option(
        "auto", help="how offloaded weights reach the device", unsupported=NO_OFFLOAD
    )
    cpu_offload_gb: NonNegativeNumber = option(
        0.0, help="GiB of weights to keep in main memory", unsupported=NO_OFFLOAD
    )
    cpu_offload_params: list[str] = option([], help="parts of names of weights to offload", unsupported=NO_OFFLOAD)
    offload_group_size: NonNegative = option(0, help="layers in a group of prefetching", unsupported=NO_OFFLOAD)
    offload_num_in_group: Positive = option(1, help="layers of each group to offload", unsupported=NO_OFFLOAD)
    offload_prefetch_step: NonNegative = option(1, help="layers to fetch ahead", unsupported=NO_OFFLOAD)
    offload_params: list[str] = option([], help="parts of names of weights to prefetch", unsupported=NO_OFFLOAD)
