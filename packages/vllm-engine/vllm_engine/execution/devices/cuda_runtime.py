"""``CudaRuntime``: the few calls of ``torch.cuda`` that are about a device as a whole. No decisions here."""

from typing import Protocol

import torch

from vllm_engine.config.device import first_gpu
from vllm_engine.execution.devices import nvml


class Runtime(Protocol):
    """What ``CudaDevice`` knows of CUDA. All sizes are in bytes."""

    torch_device: torch.device

    def free_without_context(self) -> int | None:
        """What any process could take, asked without taking anything; None where nobody can say."""
        ...

    def use(self) -> None:
        """Make the device the calling thread's own, and make its context."""
        ...

    def name(self) -> str:
        """The device's name."""
        ...

    def free_and_total(self) -> tuple[int, int]:
        """What any process could still take, and all there is."""
        ...

    def reserved(self) -> int:
        """What torch holds of the device, whether or not a tensor is in it."""
        ...

    def peak_reserved(self) -> int:
        """The most of that since ``forget_peak``."""
        ...

    def forget_peak(self) -> None:
        """Measure ``peak_reserved`` from now on."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...

    def empty_cache(self) -> None:
        """Give what torch holds without a tensor in it back to the device; pinned main memory to the system."""
        ...


class CudaRuntime:
    """The first device that the process may see, through torch."""

    torch_device = torch.device("cuda", 0)

    def free_without_context(self) -> int | None:
        gpu = first_gpu()
        return None if gpu is None else nvml.free_bytes(gpu.bus_id, gpu.total)

    def use(self) -> None:
        torch.cuda.set_device(self.torch_device)
        torch.zeros(1, device=self.torch_device)  # the first thing that needs a context makes it

    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    def free_and_total(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self.torch_device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self.torch_device)

    def peak_reserved(self) -> int:
        return torch.cuda.max_memory_reserved(self.torch_device)

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()
        # Newer versions of torch have it in public. Without either, pinned memory is kept for whoever needs some next.
        public = getattr(torch.accelerator, "empty_host_cache", None)
        empty_host_cache = public or getattr(torch._C, "_host_emptyCache", None)
        if empty_host_cache is not None:
            empty_host_cache()
