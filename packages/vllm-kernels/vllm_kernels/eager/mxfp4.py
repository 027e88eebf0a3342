import torch

from vllm_kernels.eager.linear import EagerWeight
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.reference.mxfp4 import FloatProductWeight, numbers


class WidenedWeight(FloatProductWeight):
    """Made to numbers of its type whole for every product, which is torch's own."""

    def _plain(self) -> EagerWeight:
        plain = EagerWeight(0, self.in_features, self.dtype, self.gated)
        plain.tensor = numbers(self.entries, self.scales).to(self.dtype)
        return plain


def new_weight(out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> LinearWeight:
    return WidenedWeight(out_features, in_features, dtype, gated=gated)
