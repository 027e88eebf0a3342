"""Maxima, sums and inverse distribution functions of rows, in two levels: blocks of columns, then one block.

A full running sum over a vocabulary is serial and slow; sums of blocks are not, and then only one block per row is
looked into. Also, torch splits a reduction to one number among threads but not a reduction of many rows, so
that a sum over a whole row would depend on how many rows there are; block sums do not.
"""

import torch

BLOCK = 512


def block_max(rows: torch.Tensor) -> torch.Tensor:
    """Largest value of each block of columns: ``[num_rows, num_blocks]``. NaN if a block holds NaN."""
    whole, rest = _blocks(rows)
    parts = [whole.amax(2)] if whole is not None else []
    if rest is not None:
        parts.append(rest.amax(1, keepdim=True))
    return torch.cat(parts, dim=1)


def block_sums(rows: torch.Tensor) -> torch.Tensor:
    """Sum of each block of columns in fp64: ``[num_rows, num_blocks]``."""
    whole, rest = _blocks(rows)
    parts = [whole.sum(2, dtype=torch.float64)] if whole is not None else []
    if rest is not None:
        parts.append(rest.sum(1, keepdim=True, dtype=torch.float64))
    return torch.cat(parts, dim=1)


def weight_sums(weights: torch.Tensor) -> torch.Tensor:
    """Sum of each row in fp64: ``[num_rows]``."""
    return block_sums(weights).cumsum(1)[:, -1]


def first_maximum(rows: torch.Tensor, maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Column of the first largest value of each row, and that value.

    ``maxima`` is ``block_max(rows)``. The column is -1 where the largest value is not finite (NaN counts as largest).
    """
    highest = maxima.amax(1)
    block = (maxima == highest[:, None]).int().argmax(1)  # argmax gives the first of equals
    inside, columns = _block_of(rows, block)
    column = (inside == highest[:, None]).int().argmax(1) + columns
    return column.masked_fill_(~highest.isfinite(), -1), highest


def pick(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First column such that the weights up to it add up to more than ``uniform`` of their row's sum.

    ``weights`` ``[num_rows, num_columns]`` at least 0, a row not all 0; ``uniforms`` ``[num_rows]`` fp64 in [0, 1).
    Never a column of weight 0.
    """
    sums = block_sums(weights).cumsum_(1)
    target = uniforms * sums[:, -1]
    # Rounding may put the target at the very end: then the last block, and in it the last column, that weighs anything.
    last_block = (sums < sums[:, -1:]).sum(1)
    block = torch.minimum((sums <= target[:, None]).sum(1), last_block)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)[:, None])[:, 0], 0.0)
    inside, columns = _block_of(weights, block)
    running = inside.double().cumsum_(1)
    last_column = (running < running[:, -1:]).sum(1)
    column = (running <= (target - before)[:, None]).sum(1)
    return torch.minimum(column, last_column) + columns


def _blocks(rows: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Views: ``[num_rows, whole_blocks, BLOCK]`` and the columns that are left, None where there are none."""
    width = rows.shape[1]
    whole = width - width % BLOCK
    return (
        rows[:, :whole].unflatten(1, (-1, BLOCK)) if whole else None,
        rows[:, whole:] if whole < width else None,
    )


def _block_of(rows: torch.Tensor, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of one block per row ``[num_rows, BLOCK]``, and the block's first column ``[num_rows]``.

    The last block is moved left to be inside the row, so that it overlaps the one before.
    """
    width = min(BLOCK, rows.shape[1])
    first = block * BLOCK
    columns = first[:, None] + torch.arange(width)
    inside = rows.gather(1, columns.clamp(max=rows.shape[1] - 1))
    outside = columns >= rows.shape[1]
    return inside.masked_fill_(outside, 0), first
