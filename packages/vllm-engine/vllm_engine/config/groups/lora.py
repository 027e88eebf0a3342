"""Adapters."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.groups.reasons import NO_LORA
from vllm_engine.config.groups.types import Positive
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters beside the base model."""

    enable_lora: bool | None = option(None, help="serve LoRA adapters", unsupported=NO_LORA, possible=(False,))
    max_loras: Positive = option(1, help="most adapters in one step", unsupported=NO_LORA)
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = option(
        16, help="highest rank of an adapter", unsupported=NO_LORA
    )
    lora_dtype: str = option("auto", help="data type of adapters", unsupported=NO_LORA)
    enable_tower_connector_lora: bool = option(
        False, help="adapt the media encoder and its connector, too", unsupported=NO_LORA
    )
    max_cpu_loras: Positive | None = option(None, help="most adapters kept in main memory", unsupported=NO_LORA)
    fully_sharded_loras: bool = option(False, help="split adapters fully over devices", unsupported=NO_LORA)
    lora_target_modules: list[str] | None = option(None, help="layers that may be adapted", unsupported=NO_LORA)
    default_mm_loras: dict[str, str] | None = option(None, help="adapter for each kind of media", unsupported=NO_LORA)
    specialize_active_lora: bool = option(
        False, help="kernels made for the number of adapters in use", unsupported=NO_LORA
    )
