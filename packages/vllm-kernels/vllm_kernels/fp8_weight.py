"""What every face's weight of fp8 numbers offers beside ``LinearWeight``."""

import torch

from vllm_kernels.rounded_input_weight import RoundedInputWeight


class Fp8Weight(RoundedInputWeight):
    """A weight of e4m3 numbers (arXiv:2209.05433), each standing for itself times a scale.

    Args:
        out_features, in_features, dtype, gated: see ``LinearWeight``.
        block: rows and columns that share a scale; None: a row has its own.
    """

    def __init__(
        self, out_features: int, in_features: int, dtype: torch.dtype, block: int | None, *, gated: bool = False
    ) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.block = block
        self.entries = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        shape = (out_features, 1) if block is None else (-(-out_features // block), in_features // block)
        self.scales = torch.empty(shape)
        """fp32 ``[out_features, 1]``, or ``[out_features / block, in_features / block]``, rounded up."""
        self.input_scale: torch.Tensor | None = None
        """fp32 ``[1]``: of all activations; None: each token has its own."""

    def scales_of(self, start: int, count: int) -> torch.Tensor:
        """The part of ``scales`` of some rows, the first of which begins a block."""
        size = self.block or 1
        return self.scales[start // size : -(-(start + count) // size)]

    def fill_fp8(self, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Store rows of e4m3; see ``ops.fp8.fill_fp8``. Arguments are checked."""
        self.entries[start : start + len(entries)] = entries
        self.scales_of(start, len(entries)).copy_(scales)
