"""Tensors that end where readable memory ends: a kernel that goes past one, by a byte, ends the process at once.

Vectors are what makes that likely: the last of a row may have fewer numbers than lanes, and what lies behind a tensor
is nearly always memory that can be read, and so no test fails.
"""

import ctypes
import mmap
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

_NO_ACCESS = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def zeros(nbytes: int) -> torch.Tensor:
    """uint8 ``[nbytes]`` of zeros, the last of them the last of its page, before one that cannot be touched."""
    size = max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    if _libc.mprotect(everything.data_ptr() + size, mmap.PAGESIZE, _NO_ACCESS) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    # As a buffer of its own: a view into the whole would have an offset that is no multiple of wider types.
    return torch.frombuffer(memory, dtype=torch.uint8, count=nbytes, offset=size - nbytes) if nbytes else everything[:0]


def fenced(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides whose last number is the last of a page."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == 0:
        return tensor
    copy = zeros(extent * tensor.itemsize).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    return copy.copy_(tensor)


class Fence(TorchDispatchMode):
    """Inside the ``with`` block each tensor that torch's operators make is fenced: arguments, results and copies."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to wrap a mode, torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {
            each.untyped_storage().data_ptr()
            for each in tree_iter((args, kwargs or {}))
            if isinstance(each, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        return tree_map_only(
            torch.Tensor,
            lambda tensor: tensor if tensor.untyped_storage().data_ptr() in given else fenced(tensor),
            result,
        )
