"""Rows of an embedding table."""

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape


def embedding(ids: torch.Tensor, table: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """``table[ids] * scale``, where the scale is rounded to the dtype of the table and the product once more.

    Args:
        ids: ``[num_tokens]``, int64, each in ``[0, num_rows)``.
        table: ``[num_rows, size]``, floating point.
        scale: factor of all rows; None: the rows as they are. Gemma was trained with the rounded one.

    Returns:
        ``[num_tokens, size]``, dtype of ``table``: a new tensor.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: an id is outside of the table. On a GPU its row is zeros.
    """
    check_shape("ids", ids, (None,))
    check_dtype("ids", ids, torch.int64)
    check_shape("table", table, (None, None))
    check_floating("table", table)
    result: torch.Tensor = face_of("embedding", table.device).embedding(ids, table, scale)
    return result
