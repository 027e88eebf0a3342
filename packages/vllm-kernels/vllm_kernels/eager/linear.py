import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if x.dtype == torch.float32 or x.dtype == torch.float64:
        return functional.linear(x, weight, bias)
    # oneDNN compiles and keeps a kernel of up to a megabyte for every number of rows that it meets in 16 bits. Steps
    # have all sizes, so without rounding a server grows by hundreds of megabytes.
    rows = x.flatten(0, -2)
    count = rows.shape[0]
    padded_count = padded_rows(count)
    if padded_count == count:
        return functional.linear(x, weight, bias)
    padded = rows.new_zeros(padded_count, rows.shape[1])
    padded[:count] = rows
    return functional.linear(padded, weight, bias)[:count].view(*x.shape[:-1], -1)


def padded_rows(count: int) -> int:
    """``count`` rounded up to one of a few dozen sizes: four in each octave, so by less than a quarter."""
    if count <= 8:
        return count
    step = max(8, 1 << ((count - 1).bit_length() - 3))
    return -(-count // step) * step
