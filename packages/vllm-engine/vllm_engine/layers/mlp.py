"""Feed-forward layers."""

from collections.abc import Callable

from torch import Tensor

from vllm_engine.layers.linear import Linear, MergedLinear
from vllm_engine.layers.module import TensorModule
from vllm_kernels.ops import activation as ops

_GATED = {"silu": ops.silu_and_mul, "gelu": ops.gelu_and_mul, "gelu_tanh": ops.gelu_tanh_and_mul}
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
        self.gate_up_proj: Linear
        if fused_in_checkpoint:
            self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, bias)
        else:
            parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
            self.gate_up_proj = MergedLinear(hidden_size, parts, bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias)
        self.activation = _GATED[activation]

    def forward(self, x: Tensor) -> Tensor:
        """``[T, hidden_size]`` -> ``[T, hidden_size]``."""
        return self.down_proj(self.activation(self.gate_up_proj(x)))


def plain_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a feed-forward layer without gate, by its name in ``DecoderConfig``."""
    return _PLAIN[name]
