import torch
from torch.nn import functional

from vllm_kernels.reference.activation import SWIGLU_ALPHA, SWIGLU_LIMIT


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.silu(gate).mul_(value)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.gelu(gate).mul_(value)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(value)


def swigluoai_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    gate, value = gate.clamp(max=SWIGLU_LIMIT), value.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return (gate * torch.sigmoid(SWIGLU_ALPHA * gate)).mul_(value.add_(1)).to(x.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


def relu(x: torch.Tensor) -> torch.Tensor:
    return functional.relu(x)
