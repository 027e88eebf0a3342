"""The kinds of hardware that a worker can run on."""

from vllm_engine.config import EngineConfig
from vllm_engine.execution.devices.base import Device
from vllm_engine.execution.devices.cpu import CpuDevice
from vllm_engine.execution.devices.cuda import CudaDevice
from vllm_engine.execution.devices.cuda_runtime import CudaRuntime

__all__ = ["Device", "device_for"]


def device_for(config: EngineConfig) -> Device:
    """The device that the settings name, not set up yet. Raises ``ConfigError`` where it cannot be used."""
    return CudaDevice(CudaRuntime()) if config.device.kind == "cuda" else CpuDevice()
