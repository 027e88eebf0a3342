import torch
from torch.nn import functional


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.silu(gate).mul_(value)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.gelu(gate).mul_(value)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(value)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


def relu(x: torch.Tensor) -> torch.Tensor:
    return functional.relu(x)
