"""Feed-forward layers."""

from collections.abc import Callable
from typing import cast

from torch import Tensor

from vllm_engine.layers.linear import GatedLinear, Linear
from vllm_engine.layers.module import TensorModule
from vllm_engine.layers.norm import RMSNorm
from vllm_kernels.linear_weight import Activation
from vllm_kernels.ops import activation as ops

_PLAIN = {"gelu": ops.gelu, "gelu_tanh": ops.gelu_tanh, "relu": ops.relu}


class GatedMLP(TensorModule):
    """``down(activation(gate(x)) * up(x))`` (https://arxiv.org/abs/2002.05202).

    ``fused_in_checkpoint``: the checkpoint has gate and up as one matrix ``gate_up_proj`` already.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        bias: bool = False,
        *,
        fused_in_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.gate_up_proj = GatedLinear(
            hidden_size,
            intermediate_size,
            cast(Activation, activation),
            bias,
            fused_in_checkpoint=fused_in_checkpoint,
        )
        self.down_proj = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: RMSNorm | None = None) -> Tensor:
        """``[T, hidden_size]`` -> ``[T, hidden_size]``; ``residual``, of that shape, is added.

        With ``norm``, of ``norm(x)``.
        """
        return self.down_proj(self.gate_up_proj(x, norm), residual)


def plain_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a feed-forward layer without gate, by its name in ``DecoderConfig``."""
    return _PLAIN[name]
