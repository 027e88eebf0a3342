import torch
from torch.nn import functional

from vllm_kernels.ops.ssm import ConvActivation, SSMMetadata
from vllm_kernels.reference.ssm import causal_conv1d, sequences, step_sizes

__all__ = ["causal_conv1d", "causal_conv1d_update", "chunk_scan", "selective_state_update"]

CHUNK = 64


def causal_conv1d_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    activation: ConvActivation | None,
) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    known, slots = _known(state_slots, len(state))
    history = torch.where(known[:, None, None], state[slots], 0).to(x.dtype)
    inputs = torch.cat([history, x[:, :, None]], dim=2)
    total = torch.einsum("scw,cw->sc", inputs.to(wide), weight.to(wide))
    total = total if bias is None else total + bias.to(wide)
    state[slots[known]] = inputs[known, :, 1:].to(state.dtype)
    return (functional.silu(total) if activation else total).to(x.dtype)


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
    wide = torch.promote_types(x.dtype, torch.float32)
    known, slots = _known(state_slots, len(state))
    steps, values = step_sizes(dt.to(wide), dt_bias, dt_softplus, dt_limit), x.to(wide)
    b, c = (tensor.to(wide).repeat_interleave(x.shape[1] // b.shape[1], dim=1) for tensor in (b, c))
    before = torch.where(known[:, None, None, None], state[slots], 0).to(wide)
    running = before.mul_(torch.exp(steps * a.to(wide))[:, :, None, None])
    running = running.addcmul_((steps[:, :, None] * values)[..., None], b[:, :, None, :])
    result = (running @ c[..., None])[..., 0]
    state[slots[known]] = running[known].to(state.dtype)
    return _finished(result, values, d, z).to(x.dtype)


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
    steps, values = step_sizes(dt.to(wide), dt_bias, dt_softplus, dt_limit).T, x.to(wide)
    inputs = values.transpose(0, 1)  # [heads, tokens, head_dim]
    b, c = (t.to(wide).repeat_interleave(x.shape[1] // t.shape[1], dim=1).transpose(0, 1) for t in (b, c))
    result = torch.empty_like(inputs)
    for tokens, slot, resumed in sequences(metadata, len(state)):
        running = state[slot].to(wide) if resumed else torch.zeros(state.shape[1:], dtype=wide, device=state.device)
        for start in range(tokens.start, tokens.stop, CHUNK):
            part = slice(start, min(start + CHUNK, tokens.stop))
            sums = torch.cumsum(steps[:, part] * a.to(wide)[:, None], dim=1)
            weighted = inputs[:, part] * steps[:, part, None]
            decay = (sums[:, :, None] - sums[:, None, :]).tril().exp().tril()
            result[:, part] = (c[:, part] @ b[:, part].transpose(1, 2) * decay) @ weighted
            result[:, part] += (c[:, part] @ running.transpose(1, 2)) * sums.exp()[..., None]
            left = (sums[:, -1:] - sums).exp()[..., None]
            running = running * sums[:, -1].exp()[:, None, None] + (weighted * left).transpose(1, 2) @ b[:, part]
        if slot is not None:
            state[slot] = running.to(state.dtype)
    return _finished(result.transpose(0, 1), values, d, z).to(x.dtype).contiguous()


def _finished(
    result: torch.Tensor, values: torch.Tensor, d: torch.Tensor | None, z: torch.Tensor | None
) -> torch.Tensor:
    if d is not None:
        result = result + d.to(result.dtype)[:, None] * values
    return result if z is None else result * functional.silu(z.to(result.dtype))


def _known(state_slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which slots exist, and all of them with 0 in place of the others."""
    known = (state_slots >= 0) & (state_slots < num_slots)
    return known, torch.where(known, state_slots, 0).long()
