"""What every face's weight of MXFP4 numbers offers beside ``LinearWeight``."""

import torch

from vllm_kernels.linear_weight import LinearWeight

BLOCK = 32
"""Neighbouring entries of a row that share a scale."""
NAN_SCALE = 255
"""The scale of a block that is no number."""


class Mxfp4Weight(LinearWeight):
    """A weight of MXFP4 numbers; see ``ops.mxfp4.new_weight``.

    ``in_features`` is a multiple of 32.
    """

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, *, gated: bool = False) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.entries = torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        """Two entries a byte: the even column in the lower half."""
        self.scales = torch.empty(out_features, in_features // BLOCK, dtype=torch.uint8)
        """Of each block: the exponent of two, plus 127."""

    def fill_mxfp4(self, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Store rows as they are: ``[n, in_features / 2]`` and ``[n, in_features / 32]``. Arguments are checked."""
        end = start + len(entries)
        self.entries[start:end], self.scales[start:end] = entries, scales
