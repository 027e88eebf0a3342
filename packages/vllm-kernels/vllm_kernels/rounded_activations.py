"""Activations of 8 bits, as products of them take them."""

from typing import NamedTuple

import torch


class Rounded(NamedTuple):
    """Rows of activations that stand for ``values * scales``.

    Args:
        values: e4m3 or int8 ``[..., k]``.
        scales: fp32 ``[...]``, one for each row; NaN for a row that is no number.
    """

    values: torch.Tensor
    scales: torch.Tensor
