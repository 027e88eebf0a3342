"""State-space layers: convolution, one further token, and whole prompts, in the shape of Mamba 2 2.7B."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.ssm import (
    SSMMetadata,
    causal_conv1d,
    causal_conv1d_update,
    chunk_scan,
    selective_state_update,
)

_ROWS = slice(0, 8)

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""``x``, ``dt``, ``a``, ``b``, ``c``."""
Heads = tuple[torch.Tensor, torch.Tensor]
"""``d`` and ``dt_bias``, one number of each for a head, as Mamba 2 has them."""


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for."""
    yield _convolution(sizes(8192, 20), device, dtype, sizes)
    yield _convolution_update(sizes(256, 3), device, dtype, sizes)
    yield _update(sizes(256, 9), device, dtype, sizes)
    yield _scan(sizes(8192, 40), device, dtype, sizes)


def _metadata(tokens: int, device: torch.device) -> SSMMetadata:
    """One sequence from its beginning."""
    return SSMMetadata(
        torch.tensor([0, tokens], dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.zeros(1, dtype=torch.bool, device=device),
        [tokens],
    )


def _convolution(tokens: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    channels = sizes(5376, 40)
    x = torch.randn(tokens, channels, device=device).to(dtype)
    weight, bias = torch.randn(channels, 4, device=device).to(dtype), torch.randn(channels, device=device).to(dtype)
    state, metadata = torch.zeros(1, channels, 3, device=device, dtype=dtype), _metadata(tokens, device)

    def exact() -> torch.Tensor:
        inputs = torch.nn.functional.pad(x[_ROWS].double(), (0, 0, 3, 0))
        taps = sum(inputs[tap : tap + 8] * weight[:, tap].double() for tap in range(4))
        return torch.nn.functional.silu(taps + bias.double())

    return Case(
        "causal_conv1d",
        f"{tokens} x {channels}",
        lambda: causal_conv1d(x, weight, bias, state, metadata),
        lambda result: result[_ROWS],
        exact,
        5e-3,
        2 * x.nbytes,
        peer=lambda: torch.nn.functional.conv1d(x.T[None], weight[:, None], bias, padding=3, groups=channels),
        peer_name="torch conv1d",
    )


def _convolution_update(rows: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    channels = sizes(5376, 40)
    x = torch.randn(rows, channels, device=device).to(dtype)
    weight, bias = torch.randn(channels, 4, device=device).to(dtype), torch.randn(channels, device=device).to(dtype)
    before = torch.randn(rows, channels, 3, device=device).to(dtype)
    state, slots = before.clone(), torch.arange(rows, dtype=torch.int32, device=device)

    def exact() -> torch.Tensor:
        inputs = torch.cat([before[_ROWS], x[_ROWS, :, None]], dim=2).double()
        return torch.nn.functional.silu((inputs * weight.double()).sum(2) + bias.double())

    return Case(
        "causal_conv1d_update",
        f"{rows} x {channels}",
        lambda: causal_conv1d_update(x, weight, bias, state, slots),
        lambda result: result[_ROWS],
        exact,
        5e-3,
        2 * x.nbytes + 2 * state.nbytes + weight.nbytes,
    )


def _inputs(tokens: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> tuple[Inputs, Heads]:
    heads, head_dim, size = sizes(80, 4), sizes(64, 8), sizes(128, 16)
    x = torch.randn(tokens, heads, head_dim, device=device).to(dtype)
    dt = torch.randn(tokens, heads, device=device).to(dtype)
    a = -torch.rand(heads, device=device) - 0.5
    b, c = (torch.randn(tokens, 1, size, device=device).to(dtype) for _ in range(2))
    return (x, dt, a, b, c), (torch.randn_like(a).to(dtype), torch.randn_like(a).to(dtype) - 3)


def _step(state: torch.Tensor, token: int, inputs: Inputs, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """State after a token, and its result, in float64."""
    x, dt, a, b, c = (tensor.double() for tensor in inputs)
    size = torch.nn.functional.softplus(dt[token] + heads[1].double())
    decayed = state * torch.exp(size * a)[:, None, None]
    state = decayed + (size[:, None] * x[token])[:, :, None] * b[token, 0]
    return state, state @ c[token, 0] + heads[0].double()[:, None] * x[token]


def _update(rows: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    inputs, (d, dt_bias) = _inputs(rows, device, dtype, sizes)
    x, _, _, b, _ = inputs
    before = torch.randn(rows, x.shape[1], x.shape[2], b.shape[2], device=device)
    state, slots = before.clone(), torch.arange(rows, dtype=torch.int32, device=device)
    return Case(
        "selective_state_update",
        f"{rows} sequences, {x.shape[1]} heads of {x.shape[2]} x {b.shape[2]}",
        lambda: selective_state_update(*inputs, state, slots, d=d, dt_bias=dt_bias, dt_softplus=True),
        lambda result: result[_ROWS],
        lambda: torch.stack([_step(before[row].double(), row, inputs, (d, dt_bias))[1] for row in range(8)]),
        1e-2,
        2 * state.nbytes + 2 * x.nbytes,
    )


def _scan(tokens: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    inputs, (d, dt_bias) = _inputs(tokens, device, dtype, sizes)
    x, _, _, b, c = inputs
    state, metadata = torch.zeros(1, x.shape[1], x.shape[2], b.shape[2], device=device), _metadata(tokens, device)

    def exact() -> torch.Tensor:
        running, found = torch.zeros_like(state[0], dtype=torch.float64), []
        for token in range(8):
            running, result = _step(running, token, inputs, (d, dt_bias))
            found.append(result)
        return torch.stack(found)

    return Case(
        "chunk_scan",
        f"{tokens} tokens, {x.shape[1]} heads of {x.shape[2]} x {b.shape[2]}",
        lambda: chunk_scan(*inputs, state, metadata, d=d, dt_bias=dt_bias, dt_softplus=True),
        lambda result: result[_ROWS],
        exact,
        1e-2,
        2 * x.nbytes + b.nbytes + c.nbytes,
    )
