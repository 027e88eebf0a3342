"""Drawing a column of each row by its inverse distribution function, in two levels: block of columns, then column.

A running sum over a whole vocabulary is serial and slow. Sums of blocks are not, and then only one block per row is
looked into. A sum over the whole row is avoided for a second reason: torch splits a reduction to a single number
among threads, but not one to many numbers, so that its last bits would depend on the number of rows.
"""

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 128


def pick(weights: torch.Tensor, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """First column such that the weights up to it add up to more than ``uniform`` of their row's sum.

    Args:
        weights: ``[num_rows, num_columns]``, fp32, at least 0 and not all 0 in any row; contiguous.
        uniforms: ``[num_rows]`` in [0, 1).

    Returns:
        ``[num_rows]``; never a column of weight 0.
    """
    sums = _block_sums(weights)
    running = np.cumsum(sums, axis=1, dtype=np.float64)
    target = uniforms * running[:, -1]
    block = _first_above(running, target)
    rows = np.arange(len(block))
    before = np.where(block > 0, running[rows, block - 1], 0.0)
    # The sum of a block and the running sum inside it differ by rounding, so the target goes over as a share.
    share = (target - before) / sums[rows, block]
    num_columns = weights.shape[1]
    width = min(BLOCK, num_columns)
    wanted = block * BLOCK
    first = np.minimum(wanted, num_columns - width)  # a short last block is read with columns of the one before it
    columns = first[:, None] + np.arange(width)
    inside = weights.numpy().reshape(-1).take(columns + rows[:, None] * num_columns)
    inside[columns < wanted[:, None]] = 0
    running = np.cumsum(inside, axis=1, dtype=np.float64)
    return first + _first_above(running, share * running[:, -1])


def _first_above(running: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.int64]:
    """First column of a running sum above the target, or, where rounding leaves none, the last that adds anything."""
    above = (running <= target[:, None]).sum(axis=1)
    last = (running < running[:, -1:]).sum(axis=1)
    column: NDArray[np.int64] = np.minimum(above, last)
    return column


def _block_sums(weights: torch.Tensor) -> NDArray[np.float32]:
    num_columns = weights.shape[1]
    whole = num_columns - num_columns % BLOCK
    parts = []
    if whole:
        parts.append(weights[:, :whole].view(len(weights), -1, BLOCK).sum(2))
    if whole < num_columns:
        parts.append(weights[:, whole:].sum(1, keepdim=True))
    sums: NDArray[np.float32] = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).numpy()
    return sums
