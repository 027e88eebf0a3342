"""Memory for what is written once and read in every step."""

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Sequence

import torch

HUGE_PAGE = 1 << 21
CHUNK = 1 << 26
"""Bytes that are asked of the system at a time, for all that is not larger."""
ALIGNMENT = 4096
MADV_DONTNEED = 4
"""Of Linux: private pages are dropped, and read as zeros from then on."""


def _find_madvise() -> Callable[[int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        function.restype = ctypes.c_int
    return function


_madvise = _find_madvise()


def zeros(nbytes: int) -> torch.Tensor:
    """uint8 ``[nbytes]`` of zeros that takes memory only as it is written, in pages of 2 MiB where the system has them.

    Reading a weight touches each of its pages once: with pages of 4 KiB the translation of addresses costs as much as
    many of the reads. Tensors lie side by side in larger chunks, so that small ones and the ends of others share huge
    pages. A chunk goes back to the system with the last of its tensors.

    Raises ``MemoryError`` for more than the system can promise.
    """
    if nbytes >= CHUNK:
        return _mapping(nbytes)[:nbytes]
    return _chunks.take(nbytes)


def clear(*tensors: torch.Tensor) -> None:
    """Make contiguous tensors on the CPU zero; the whole pages of their memory, wherever it came from, go back to the
    system. Addresses stay, and memory is taken again as the tensors are written.
    """
    for start, end in _joined(tensors):
        first = min(-(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first)
        if _madvise is None or (last > first and _madvise(first, last - first, MADV_DONTNEED) != 0):
            last = first
        ctypes.memset(start, 0, first - start)
        ctypes.memset(last, 0, end - last)


def _joined(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """First address and the one after the last, of tensors that lie side by side together.

    A huge page of several tensors goes back as one, and comes back as one; piece by piece, it would be split for good.
    """
    joined: list[tuple[int, int]] = []
    for start, end in sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


class _Chunks:
    """Hands out the chunk that was mapped last, from its start to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> torch.Tensor:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if size > len(self._rest):
                self._rest = _mapping(CHUNK)
            taken, self._rest = self._rest[:nbytes], self._rest[size:]
        return taken


_chunks = _Chunks()


def _mapping(nbytes: int) -> torch.Tensor:
    """At least ``nbytes`` from a huge page's boundary on, which live as long as a view of them."""
    try:
        memory = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{nbytes} bytes: {error}") from error
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    start = -everything.data_ptr() % HUGE_PAGE
    whole = nbytes // HUGE_PAGE * HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE") and whole:
        # The last, partial page is made of small ones, so that nothing is wasted.
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return everything[start : start + nbytes]
