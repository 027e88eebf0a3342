"""Copies between main memory and a device that nobody waits for until their contents are needed.

On a GPU a copy from ordinary memory waits for all work before it, so what goes up is put into pinned memory first, and
what comes down is waited for by an event. On a CPU there is nothing to copy.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNMENT = 16
"""Bytes. Kernels load vectors from addresses that are multiples of this."""


class Download:
    """Tensors on their way to main memory.

    Args:
        tensors: in main memory; their contents are there when ``arrived`` has returned.
        arrived: waits.
    """

    __slots__ = ("_arrived", "_tensors")

    def __init__(self, tensors: list[torch.Tensor], arrived: Callable[[], None] | None) -> None:
        self._tensors = tensors
        self._arrived = arrived

    def wait(self) -> list[torch.Tensor]:
        """The tensors, in main memory; waits for them the first time."""
        if self._arrived is not None:
            self._arrived()
            self._arrived = None
        return self._tensors


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of main memory on the device; the same object where it is there. It must not change from now on."""
    if tensor.device == device:
        return tensor
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # torch keeps a pinned block until the copies out of it are done, so it may be let go of at once.
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_arrays(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[torch.Tensor]:
    """Arrays as tensors on the device, by one copy for all. They must not change from now on.

    Args:
        arrays: of numbers, in C order.
        device: where the tensors go. Each begins at a multiple of ``ALIGNMENT`` bytes there.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed, starts = pack(arrays, pinned=device.type == "cuda")
    return unpack(packed.to(device, non_blocking=True), starts, arrays)


def layout(arrays: Sequence[NDArray[np.generic]]) -> tuple[list[int], int]:
    """Where each of some arrays begins when they are packed, at a multiple of ``ALIGNMENT``; and bytes of all."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, size


def pack(arrays: Sequence[NDArray[np.generic]], *, pinned: bool) -> tuple[torch.Tensor, list[int]]:
    """Arrays one after the other in new memory, uint8, and where each begins, by ``layout``."""
    starts, size = layout(arrays)
    packed = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    data = packed.numpy()
    for start, array in zip(starts, arrays, strict=True):
        data[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed, starts


def unpack(packed: torch.Tensor, starts: list[int], arrays: Sequence[NDArray[np.generic]]) -> list[torch.Tensor]:
    """Views of what ``pack`` made of ``arrays``, wherever it is now."""
    return [
        packed[start : start + array.nbytes].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for start, array in zip(starts, arrays, strict=True)
    ]


def download(*tensors: torch.Tensor) -> Download:
    """Begin to copy tensors of a GPU, or the CPU, to main memory.

    On a GPU they are read when the work before is done, and may be written again by work after. On a CPU they are
    handed out as they are, so they must not change before they are used.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return Download(list(tensors), None)
    copies = []
    for tensor in tensors:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        copies.append(copy.copy_(tensor, non_blocking=True))
    event = torch.cuda.Event()
    event.record()
    return Download(copies, event.synchronize)
