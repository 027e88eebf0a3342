"""The driver of GPUs that are not there."""

import ctypes
from typing import Any

from vllm_engine.config.device import Gpu


class FakeDriver:
    """``libcuda`` of a machine with some GPUs; ``status`` is what ``cuInit`` returns, ``version`` of CUDA it is for."""

    def __init__(self, gpus: list[Gpu], status: int = 0, version: int = 12040) -> None:
        self.gpus = gpus
        self.status = status
        self.version = version

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, handle: Any, number: int) -> int:
        handle._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = self.gpus[handle.value].name.encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        value._obj.value = self.gpus[handle.value].capability[{75: 0, 76: 1}[attribute]]
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, handle: ctypes.c_int) -> int:
        total._obj.value = self.gpus[handle.value].total
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, size: int, handle: ctypes.c_int) -> int:
        text.value = self.gpus[handle.value].bus_id.encode()[: size - 1]
        return 0
