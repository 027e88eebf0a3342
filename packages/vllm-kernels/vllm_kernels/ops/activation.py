"""Activations of feed-forward layers, plain and gated."""

import torch

from vllm_kernels.backend import face_of


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU gate (arXiv:2002.05202): ``silu(x[..., :d]) * x[..., d:]``.

    Args:
        x: ``[..., 2 * d]``, floating point.

    Returns:
        ``[..., d]``, dtype of ``x``.

    Raises:
        ValueError: the last size is odd.
    """
    _check_gated(x)
    result: torch.Tensor = face_of("activation", x.device).silu_and_mul(x)
    return result


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """``gelu(x[..., :d]) * x[..., d:]`` with the exact GELU ``0.5 z (1 + erf(z / sqrt(2)))``.

    Shapes and errors as ``silu_and_mul``.
    """
    _check_gated(x)
    result: torch.Tensor = face_of("activation", x.device).gelu_and_mul(x)
    return result


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    """``gelu_tanh(x[..., :d]) * x[..., d:]``. Shapes and errors as ``silu_and_mul``."""
    _check_gated(x)
    result: torch.Tensor = face_of("activation", x.device).gelu_tanh_and_mul(x)
    return result


def swigluoai_and_mul(x: torch.Tensor) -> torch.Tensor:
    """The clamped gate of gpt-oss: ``g * sigmoid(1.702 g) * (v + 1)`` with ``g = min(x[..., :d], 7)`` and
    ``v = min(max(x[..., d:], -7), 7)``.

    Shapes and errors as ``silu_and_mul``. Checkpoints of gpt-oss have gate and value by turns, not as halves.
    """
    _check_gated(x)
    result: torch.Tensor = face_of("activation", x.device).swigluoai_and_mul(x)
    return result


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU ``0.5 x (1 + erf(x / sqrt(2)))`` (arXiv:1606.08415). Shape and dtype of ``x``."""
    result: torch.Tensor = face_of("activation", x.device).gelu(x)
    return result


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh approximation ``0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`` (arXiv:1606.08415).

    Models call it ``gelu_new``, ``gelu_fast`` or ``gelu_pytorch_tanh``. Shape and dtype of ``x``.
    """
    result: torch.Tensor = face_of("activation", x.device).gelu_tanh(x)
    return result


def relu(x: torch.Tensor) -> torch.Tensor:
    """``max(x, 0)``. Shape and dtype of ``x``."""
    result: torch.Tensor = face_of("activation", x.device).relu(x)
    return result


def _check_gated(x: torch.Tensor) -> None:
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(f"x must have an even last size (gate and value halves), got {list(x.shape)}")
