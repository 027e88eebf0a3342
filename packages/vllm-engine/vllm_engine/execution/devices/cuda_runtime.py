"""``CudaRuntime``: the few calls of ``torch.cuda`` that are about a device as a whole. No decisions here."""

from typing import Protocol

import torch


class Runtime(Protocol):
    """What ``CudaDevice`` knows of CUDA. Bytes, and each is of this process unless it says otherwise."""

    torch_device: torch.device

    def use(self) -> None:
        """Make the device the calling thread's own, and make its context."""
        ...

    def name(self) -> str:
        """The device's name."""
        ...

    def free_and_total(self) -> tuple[int, int]:
        """Bytes that any process could still take, and all there are."""
        ...

    def reserved(self) -> int:
        """Bytes that torch holds of the device, whether or not a tensor is in them."""
        ...

    def allocated(self) -> int:
        """Bytes of tensors."""
        ...

    def peak_allocated(self) -> int:
        """The most bytes of tensors since ``forget_peak``."""
        ...

    def forget_peak(self) -> None:
        """Measure ``peak_allocated`` from now on."""
        ...

    def synchronize(self) -> None:
        """Wait for the device."""
        ...

    def empty_cache(self) -> None:
        """Give what torch holds without a tensor in it back to the device."""
        ...


class CudaRuntime:
    """The first device that the process may see, through torch."""

    torch_device = torch.device("cuda", 0)

    def use(self) -> None:
        """Make the device the calling thread's own, and make its context."""
        torch.cuda.set_device(self.torch_device)
        torch.cuda.init()
        torch.zeros(1, device=self.torch_device)  # the context is made by the first thing that needs one

    def name(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.torch_device)

    def free_and_total(self) -> tuple[int, int]:
        """Bytes that any process could still take, and all there are."""
        return torch.cuda.mem_get_info(self.torch_device)

    def reserved(self) -> int:
        """Bytes that torch holds of the device."""
        return torch.cuda.memory_reserved(self.torch_device)

    def allocated(self) -> int:
        """Bytes of tensors."""
        return torch.cuda.memory_allocated(self.torch_device)

    def peak_allocated(self) -> int:
        """The most bytes of tensors since ``forget_peak``."""
        return torch.cuda.max_memory_allocated(self.torch_device)

    def forget_peak(self) -> None:
        """Measure ``peak_allocated`` from now on."""
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.torch_device)

    def empty_cache(self) -> None:
        """Give what torch holds without a tensor in it back to the device."""
        torch.cuda.empty_cache()
