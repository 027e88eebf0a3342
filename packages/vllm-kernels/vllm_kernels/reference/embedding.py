import torch


def embedding(ids: torch.Tensor, table: torch.Tensor, scale: float | None) -> torch.Tensor:
    if ((ids < 0) | (ids >= len(table))).any():
        raise IndexError(f"an id is outside of the {len(table)} rows")
    factor = torch.tensor(1.0 if scale is None else scale, dtype=table.dtype)
    return table[ids] * factor
