"""The gates of projections, as torch has them."""

from typing import Any

from torch.nn import functional

from vllm_kernels.linear_weight import Activation

GATES: dict[Activation, Any] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
