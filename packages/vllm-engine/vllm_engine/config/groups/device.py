"""The device."""

from dataclasses import dataclass
from typing import Literal

from vllm_engine.config.device import DeviceKind, resolve_device
from vllm_engine.config.option import option


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """What the model runs on."""

    device: Literal["auto", "cpu", "cuda", "hpu", "neuron", "tpu", "xpu"] = option(
        "auto",
        help="device to run on; auto: as VLLM_TARGET_DEVICE says, else an NVIDIA GPU where there is one, else the CPU",
        unsupported="this version runs on a CPU or an NVIDIA GPU",
        possible=("cpu", "cuda"),
    )

    @property
    def kind(self) -> DeviceKind:
        """The device, with ``auto`` resolved. Raises ``ConfigError`` where it is not there."""
        return resolve_device(self.device)
