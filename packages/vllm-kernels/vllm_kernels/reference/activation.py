import math
from collections.abc import Callable

import torch

SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, lambda z: z / (1 + torch.exp(-z)))


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _gelu)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    return _gated(x, _gelu_tanh)


def swigluoai_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = _wide(x).chunk(2, dim=-1)
    gate, value = gate.clamp(max=SWIGLU_LIMIT), value.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return (gate / (1 + torch.exp(-SWIGLU_ALPHA * gate)) * (value + 1)).to(x.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return _gelu(_wide(x)).to(x.dtype)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return _gelu_tanh(_wide(x)).to(x.dtype)


def relu(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, torch.zeros_like(x), x)


def _gated(x: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    gate, value = _wide(x).chunk(2, dim=-1)
    return (activation(gate) * value).to(x.dtype)


def _gelu(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))


def _gelu_tanh(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
