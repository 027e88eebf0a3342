"""The first columns of a stable descending sort, without sorting the row."""

import torch


def top_tokens(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the ``count`` largest values of each row, largest first, equals by column.

    ``logits`` ``[num_rows, num_columns]``; both results ``[num_rows, count]``. They are the same for every larger
    ``count`` cut to this one, which ``torch.topk`` does not promise for equals.
    """
    num_columns = logits.shape[1]
    if count >= num_columns:
        values, ids = logits.sort(dim=1, descending=True, stable=True)
        return values, ids
    values, ids = logits.topk(count + 1, dim=1)
    cut = values[:, count]
    values, ids = values[:, :count].contiguous(), ids[:, :count].contiguous()
    # Equals on both sides of the cut: topk took any of them, the lowest columns are wanted.
    for row in ((values[:, -1] == cut) & (cut > float("-inf"))).nonzero().flatten().tolist():
        equals = values[row] == cut[row]
        ids[row, equals] = (logits[row] == cut[row]).nonzero().flatten()[: int(equals.sum())]
    ids, order = ids.sort(dim=1)
    values = values.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)
