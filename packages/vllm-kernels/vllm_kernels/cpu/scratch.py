"""Memory for what kernels hand to one another, at addresses that stay the same from one run to the next."""

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch

_SMALLEST = 4096


class Scratch:
    """Hands out tensors in blocks of its own and takes a block back when no tensor is in it any more.

    The blocks are never freed: a later run that allocates alike gets the same ones. Sizes are rounded up to powers of
    two, so that runs of different sizes share blocks, too.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self.nbytes = 0
        """Of all blocks."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor with any contents."""
        nbytes = math.prod(shape) * dtype.itemsize
        size = max(_SMALLEST, 1 << (nbytes - 1).bit_length())
        free = self._free.setdefault(size, [])
        if free:
            block = free.pop()
        else:
            block = torch.empty(size, dtype=torch.uint8).numpy()  # torch's memory is aligned
            self.nbytes += size
        # The tensor's storage holds this array for as long as a view of it lives.
        held = block[:nbytes]
        weakref.finalize(held, free.append, block)
        return torch.from_numpy(held).view(dtype).view(shape)
