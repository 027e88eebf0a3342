"""A tensor of a weight file, read piece by piece, so that little of the file is in memory at once."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from torch import Tensor

_PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One entry of a weight file.

    Args:
        name: as the file has it.
        tensor: on the CPU. Good until the next entry is asked for: copy what you keep.
        mapped: whether its memory is that of the file, which the system reads when it is touched.
    """

    name: str
    tensor: Tensor
    mapped: bool

    def pieces(self, *, whole: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Its rows from the first to the last: index of a piece's first row, and piece; all in one if ``whole``.

        What was mapped for a piece is given back when the next one is asked for.
        """
        tensor = self.tensor
        if whole or tensor.nbytes <= _PIECE_BYTES or tensor.ndim == 0:
            yield 0, tensor
            self._give_back(tensor)
            return
        step = max(1, len(tensor) * _PIECE_BYTES // tensor.nbytes)
        for start in range(0, len(tensor), step):
            piece = tensor[start : start + step]
            yield start, piece
            self._give_back(piece)

    def _give_back(self, piece: Tensor) -> None:
        """Unmap the pages that lie in ``piece`` alone. Who touches them again gets them from the file again.

        The system's page cache keeps them as long as nobody else wants the memory: this only ends our hold on them.
        """
        if not self.mapped or not piece.is_contiguous() or sys.platform != "linux":
            return
        first = -(-piece.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (piece.data_ptr() + piece.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_int(mmap.MADV_DONTNEED))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
