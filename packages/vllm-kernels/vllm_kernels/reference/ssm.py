from collections.abc import Iterator

import torch
from torch.nn import functional

from vllm_kernels.ops.ssm import ConvActivation, SSMMetadata


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    metadata: SSMMetadata,
    activation: ConvActivation | None,
) -> torch.Tensor:
    out = torch.empty_like(x)
    for tokens, slot, resumed in sequences(metadata, len(state)):
        history = state[slot].to(x.dtype).T if resumed else x.new_zeros(weight.shape[1] - 1, x.shape[1])
        inputs = torch.cat([history, x[tokens]])
        out[tokens] = convolved(inputs, weight, bias, activation)
        if slot is not None:
            state[slot] = inputs[len(inputs) - len(history) :].T.to(state.dtype)
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    activation: ConvActivation | None,
) -> torch.Tensor:
    return causal_conv1d(x, weight, bias, state, one_token_each(state_slots), activation)


def selective_state_update(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> torch.Tensor:
    metadata = one_token_each(state_slots)
    return chunk_scan(x, dt, a, b, c, state, metadata, d, z, dt_bias, dt_softplus, dt_limit)


def chunk_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor,
    metadata: SSMMetadata,
    d: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty_like(x)
    steps = step_sizes(dt.to(wide), dt_bias, dt_softplus, dt_limit)
    each_head = x.shape[1] // b.shape[1]
    b, c = (tensor.to(wide).repeat_interleave(each_head, dim=1) for tensor in (b, c))
    for tokens, slot, resumed in sequences(metadata, len(state)):
        running = state[slot].to(wide) if resumed else torch.zeros(state.shape[1:], dtype=wide, device=state.device)
        for token in range(tokens.start, tokens.stop):
            step, value = steps[token], x[token].to(wide)
            running = torch.exp(step * a.to(wide))[:, None, None] * running
            running = running + (step[:, None] * value)[:, :, None] * b[token][:, None, :]
            result = torch.einsum("hpn,hn->hp", running, c[token])
            if d is not None:
                result = result + d.to(wide)[:, None] * value
            if z is not None:
                result = result * functional.silu(z[token].to(wide))
            out[token] = result.to(x.dtype)
        if slot is not None:
            state[slot] = running.to(state.dtype)
    return out


def convolved(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: ConvActivation | None
) -> torch.Tensor:
    """``[n + width - 1, channels]`` to ``[n, channels]``."""
    wide = torch.promote_types(inputs.dtype, torch.float32)
    width = weight.shape[1]
    total = sum(
        (inputs[tap : len(inputs) - width + 1 + tap].to(wide) * weight[:, tap].to(wide) for tap in range(width)),
        start=torch.zeros((), dtype=wide, device=inputs.device) if bias is None else bias.to(wide),
    )
    return (functional.silu(total) if activation else total).to(inputs.dtype)


def step_sizes(
    dt: torch.Tensor, dt_bias: torch.Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]
) -> torch.Tensor:
    """``clamp(softplus(dt + dt_bias))``."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    return (functional.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)


def sequences(metadata: SSMMetadata, num_slots: int) -> Iterator[tuple[slice, int | None, bool]]:
    """Of each sequence with tokens: which, its slot, and whether that holds an initial state."""
    slots, resumed = metadata.state_slots.tolist(), metadata.has_initial_state.tolist()
    start = 0
    for length, slot, initial in zip(metadata.query_lens_host, slots, resumed, strict=True):
        if length:
            known = 0 <= slot < num_slots
            yield slice(start, start + length), slot if known else None, initial and known
        start += length


def one_token_each(state_slots: torch.Tensor) -> SSMMetadata:
    """A step with one further token of each sequence."""
    count = len(state_slots)
    starts = torch.arange(count + 1, dtype=torch.int32, device=state_slots.device)
    return SSMMetadata(starts, state_slots, torch.ones_like(state_slots, dtype=torch.bool), [1] * count)
