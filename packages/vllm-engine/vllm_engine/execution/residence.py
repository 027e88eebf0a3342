"""``Residence``: the memory that tensors live in, given back for a while and taken again.

The tensors stay the same objects, so that parameters, their views and weights that are tied need not know of it.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from vllm_engine.execution.devices import Device
from vllm_kernels.cpu import pages

BLOCK = 1 << 26
"""Bytes of pinned memory that are asked for at a time. torch rounds each up to a power of two."""


class Residence(Protocol):
    """The memory of some tensors. Made while they are there."""

    in_place: bool
    """Whether they come back to the addresses that they had, which captured graphs know."""

    def offload(self) -> None:
        """Give the device's memory back; what the tensors hold is kept in main memory."""
        ...

    def discard(self) -> None:
        """Give all memory back; what the tensors hold is lost. Also after ``offload``."""
        ...

    def restore(self) -> bool:
        """Take the memory again. Returns whether the tensors hold what they held; they hold zeros otherwise.

        When it raises, as there is too little memory, everything is as it was before.
        """
        ...


def residence_of(tensors: Iterable[Tensor], device: Device) -> Residence:
    """The memory of contiguous tensors on a device."""
    return PageResidence(tensors) if device.kind == "cpu" else DeviceResidence(tensors, device)


class PageResidence:
    """Pages of main memory: they go back in place. What is to be kept is in main memory already."""

    in_place = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._kept = True

    def offload(self) -> None:
        """Nothing: there is no other memory to move to."""

    def discard(self) -> None:
        """Drop the pages."""
        pages.clear(*self._tensors)
        self._kept = False

    def restore(self) -> bool:
        """Nothing to take: the system hands out pages as they are written."""
        kept, self._kept = self._kept, True
        return kept


class DeviceResidence:
    """Memory of a GPU. A tensor's storage loses its memory and gets other memory later, at another address.

    No other tensor may be in these storages, and nothing on the device may use them meanwhile.
    """

    in_place = False

    def __init__(self, tensors: Iterable[Tensor], device: Device) -> None:
        storages = (tensor.untyped_storage() for tensor in tensors)
        # Tied weights, and tensors that are parts of one, share a storage.
        self._storages = list({storage.data_ptr(): storage for storage in storages if storage.nbytes()}.values())
        self._sizes = [storage.nbytes() for storage in self._storages]
        self._device = device
        self._copy: list[Tensor] | None = None

    def offload(self) -> None:
        """Copy to pinned memory, which the device reaches without help of the CPU; then let the device's go."""
        copy = list(self._new_blocks())
        for here, there in _pieces(self._storages, copy):
            there.copy_(here, non_blocking=True)
        self._device.synchronize()
        self._copy = copy
        self._free()

    def discard(self) -> None:
        """Let the memory go, and the copy in main memory if there is one."""
        self._copy = None
        self._free()

    def restore(self) -> bool:
        """Take memory of the device, and copy back what was kept."""
        try:
            for storage, size in zip(self._storages, self._sizes, strict=True):
                storage.resize_(size)
        except BaseException:
            self._free()
            self._device.release_unused()
            raise
        if self._copy is None:
            for storage in self._storages:
                _bytes_of(storage).zero_()
            return False
        for here, there in _pieces(self._storages, self._copy):
            here.copy_(there, non_blocking=True)
        self._device.synchronize()
        self._copy = None
        return True

    def _free(self) -> None:
        for storage in self._storages:
            storage.resize_(0)

    def _new_blocks(self) -> Iterator[Tensor]:
        pinned = self._device.torch_device.type == "cuda"
        total = sum(self._sizes)
        for start in range(0, total, BLOCK):
            yield torch.empty(min(BLOCK, total - start), dtype=torch.uint8, device="cpu", pin_memory=pinned)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _pieces(storages: list[torch.UntypedStorage], blocks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The bytes of storages, side by side, and those of blocks: pieces of equal length, one of each."""
    place = 0
    for storage in storages:
        rest = _bytes_of(storage)
        while len(rest):
            block, start = divmod(place, BLOCK)
            size = min(len(rest), BLOCK - start)
            yield rest[:size], blocks[block][start : start + size]
            rest, place = rest[size:], place + size
