"""Memory for what is written once and read in every step."""

import mmap

import torch

HUGE_PAGE = 1 << 21


def zeros(nbytes: int) -> torch.Tensor:
    """uint8 ``[nbytes]`` of zeros that takes memory only as it is written, in pages of 2 MiB where the system has them.

    Reading a weight touches each of its pages once: with pages of 4 KiB the translation of addresses costs as much as
    many of the reads. The start is at a huge page's boundary; the last, partial one is made of small pages, so that
    nothing is wasted.

    Raises ``MemoryError`` for more than the system can promise.
    """
    whole = nbytes // HUGE_PAGE * HUGE_PAGE
    if not whole:
        return torch.zeros(nbytes, dtype=torch.uint8)
    try:
        memory = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{nbytes} bytes: {error}") from error
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    start = -everything.data_ptr() % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
    # The view keeps the mapping alive.
    return everything[start : start + nbytes]
