"""The beginning of a stable descending sort of each row, without sorting the row."""

import torch

BLOCK = 128
_LOW_32_BITS = 0xFFFFFFFF


def top_tokens(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the ``count`` largest values of each row, largest first, equals by column.

    ``torch.topk`` promises no order of equals and may take any of those at the cut; this is one order for all counts.

    Args:
        logits: ``[num_rows, num_columns]``, fp32 without NaN.
        count: 1 to ``num_columns``.

    Returns:
        ``(values, columns)``, both ``[num_rows, count]``.
    """
    num_columns = logits.shape[1]
    if count * BLOCK * 2 > num_columns:
        ids = torch.arange(num_columns).expand_as(logits)
        ids = _largest(logits, ids, count)
    else:
        # Only blocks among the first ``count`` by their largest value can hold one of the first ``count`` values: any
        # other block has ``count`` blocks before it, and each of those has a value that comes before all of its own.
        whole = num_columns - num_columns % BLOCK
        maxima = logits[:, :whole].unflatten(1, (-1, BLOCK)).amax(2)
        if whole < num_columns:
            maxima = torch.cat([maxima, logits[:, whole:].amax(1, keepdim=True)], dim=1)
        _, blocks = top_tokens(maxima, count)
        ids = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        inside = ids < num_columns
        values = logits.gather(1, ids.clamp(max=num_columns - 1)).masked_fill_(~inside, float("-inf"))
        ids = _largest(values, ids, count)
    return logits.gather(1, ids), ids


def _largest(values: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Ids of the largest values, by one integer key per entry: the float's bits made to order as it, then the id."""
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0, which it equals
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (ordered.long() << 32) | (_LOW_32_BITS - ids)
    return _LOW_32_BITS - (keys.topk(count, dim=1).values & _LOW_32_BITS)
