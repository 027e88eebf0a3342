"""What weights offer whose activations are rounded to 8 bits: they take such as are rounded already."""

from abc import abstractmethod

import torch

from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.reference.linear import GATES
from vllm_kernels.rounded_activations import Rounded


class RoundedInputWeight(LinearWeight):
    """A weight whose face rounds activations itself in ``multiply``, and not here. Arguments are checked."""

    @abstractmethod
    def multiply_rounded(
        self, x: Rounded, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """Values ``[n, in_features]`` -> ``[n, out_features]``; see ``ops.rounded.linear``.

        Gated weights give both halves.
        """

    def multiply_gated_rounded(self, x: Rounded, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """Values ``[n, in_features]`` -> ``[n, out_features / 2]`` in ``dtype``; see ``ops.rounded.gated_linear``."""
        return GATES[activation](self.multiply_rounded(x, bias, None, torch.float32)).to(self.dtype)
