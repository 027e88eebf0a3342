"""Mixtures of experts: both projections, the gate between them, and the weighted sum."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.linear_weight import Activation
from vllm_kernels.ops.moe import Format, fill, moe, new_weight, route, rows

_TOKENS = 2


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them; inputs are random and made as each is asked for. The shapes are Qwen 3 30B A3B's."""
    shape = sizes(128, 4), sizes(8, 2), sizes(2048, 64), sizes(768, 32)
    yield _routing(sizes(4096, 9), shape[0], shape[1], device, dtype)
    for format in (None, "fp8", "int8", "int4"):
        for tokens in (sizes(64, 3), sizes(4096, 270 if format is None else 9)):
            group = sizes(128, 32) if format == "int4" else None
            activation_bits = None if format == "int4" else 8
            yield experts(tokens, *shape, format, device, dtype, group, activation_bits, goal=0.7)


def _routing(tokens: int, num_experts: int, top_k: int, device: torch.device, dtype: torch.dtype) -> Case:
    logits = torch.randn(tokens, num_experts, device=device).to(dtype)

    def by_torch() -> torch.Tensor:
        shares = torch.softmax(logits, dim=1, dtype=torch.float32).topk(top_k, dim=1).values
        return shares / shares.sum(dim=1, keepdim=True)

    return Case(
        "routing",
        f"{tokens} tokens, {top_k} of {num_experts} experts",
        lambda: route(logits, top_k, renormalize=True).weights,
        lambda result: result[:_TOKENS],
        lambda: torch.softmax(logits[:_TOKENS].double().topk(top_k, dim=1).values, dim=1),
        1e-5,
        logits.nbytes + 8 * tokens * top_k,
        peer=by_torch,
        peer_name="torch softmax and topk",
    )


def experts(
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    format: Format | None,
    device: torch.device,
    dtype: torch.dtype,
    group_size: int | None = None,
    activation_bits: int | None = 8,
    goal: float | None = None,
) -> Case:
    """A layer; the weights of all experts are of one format."""
    activation: Activation = "silu"
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    options = {} if format in (None, "fp8", "mxfp4") else {"group_size": group_size, "activation_bits": activation_bits}
    with device:
        weights = [
            new_weight(num_experts, *size, dtype, device, gated=gated, format=format, **options)  # type: ignore[arg-type]
            for size, gated in (((2 * intermediate, hidden), True), ((hidden, intermediate), False))
        ]
    up, down = weights
    for weight in weights:
        for expert in range(num_experts):
            shape = (weight.out_features, weight.in_features)
            fill(weight, expert, torch.randn(shape, device=device) * weight.in_features**-0.5)
    routing = route(torch.randn(tokens, num_experts, device=device).to(dtype), top_k, renormalize=True)

    def exact() -> torch.Tensor:
        found = torch.zeros(_TOKENS, hidden, dtype=torch.float64, device=device)
        for token in range(_TOKENS):
            for expert, share in zip(routing.experts[token].tolist(), routing.weights[token].tolist(), strict=True):
                made = _all(up, expert) @ x[token].double()
                gate, value = made.chunk(2)
                found[token] += share * (_all(down, expert) @ (torch.nn.functional.silu(gate) * value))
        return found

    used = min(num_experts, routing.experts.unique().numel())
    moved = used * (up.nbytes + down.nbytes) // num_experts + 2 * x.nbytes
    return Case(
        f"experts {format or 'in 16 bits'}",
        f"{tokens} tokens, {top_k} of {num_experts} experts, {hidden} x {intermediate}",
        lambda: moe(x, routing, up, down, activation),
        lambda result: result[:_TOKENS],
        exact,
        1e-2 if format is None or activation_bits is None else 1e-1,  # activations are rounded, twice
        moved,
        6 * tokens * top_k * hidden * intermediate,
        "memory" if tokens * top_k <= 32 * num_experts else "matrix",
        goal=goal,
    )


def _all(weight: object, expert: int) -> torch.Tensor:
    ids = torch.arange(weight.out_features)  # type: ignore[attr-defined]
    return rows(weight, expert, ids).double()  # type: ignore[arg-type]
