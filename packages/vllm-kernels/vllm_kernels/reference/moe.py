from collections.abc import Callable

import torch

from vllm_kernels.expert_weight import LARGEST_FP8, ExpertWeight, Routing, Scheme
from vllm_kernels.linear_weight import Activation, LinearWeight
from vllm_kernels.mxfp4_weight import Mxfp4Weight
from vllm_kernels.quantized_weight import QuantizedWeight
from vllm_kernels.reference import linear, mxfp4, quantization
from vllm_kernels.reference.linear import GATES


class SeparateExperts(ExpertWeight):
    """A weight for each expert, as projections have them."""

    def __init__(self, parts: list[LinearWeight], scheme: Scheme) -> None:
        first = parts[0]
        super().__init__(len(parts), first.out_features, first.in_features, first.dtype, scheme, first.gated)
        self.parts = parts

    def fill(self, expert: int, rows: torch.Tensor, start: int) -> None:
        self.parts[expert].fill(rows, start)

    def fill_quantized(
        self, expert: int, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int
    ) -> None:
        part = self.parts[expert]
        if isinstance(part, QuantizedWeight):
            part.fill_quantized(q, scales, zeros, start)

    def fill_fp8(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        part = self.parts[expert]
        if isinstance(part, ScaledWeight):
            part.fill_fp8(entries, scales, start)

    def fill_mxfp4(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        part = self.parts[expert]
        if isinstance(part, Mxfp4Weight):
            part.fill_mxfp4(entries, scales, start)

    def rows(self, expert: int, ids: torch.Tensor) -> torch.Tensor:
        return self.parts[expert].rows(ids)


class ScaledWeight(LinearWeight):
    """Entries of e4m3, a scale for each row."""

    def __init__(self, out_features: int, in_features: int, dtype: torch.dtype, gated: bool) -> None:
        super().__init__(out_features, in_features, dtype, gated=gated)
        self.entries = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        self.scales = torch.empty(out_features)

    def fill(self, rows: torch.Tensor, start: int = 0) -> None:
        self.fill_fp8(*rounded_to_fp8(rows), start)

    def fill_fp8(self, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        """Store rows that are rounded already."""
        end = start + len(entries)
        self.entries[start:end], self.scales[start:end] = entries, scales

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.entries[ids].float() * self.scales[ids, None]).to(self.dtype)

    def multiply(
        self, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result = self._wide(x, bias)
        if residual is not None:
            result = result + residual.to(result.dtype)
        return result.to(out_dtype)

    def multiply_gated(self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        return GATES[activation](self._wide(x, bias)).to(x.dtype)

    def _wide(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        entries, scales = rounded_to_fp8(x)
        sums = entries.to(wide) @ self.entries.to(wide).T
        result = sums * scales[:, None].to(wide) * self.scales.to(wide)
        return result if bias is None else result + bias.to(wide)


def route(
    logits: torch.Tensor,
    top_k: int,
    score: str,
    renormalize: bool,
    scale: float,
    bias: torch.Tensor | None,
    groups: int,
    top_groups: int,
) -> Routing:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = logits.softmax(dim=1) if score == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias.to(scores.dtype)
    choice = torch.where(choice.isnan(), -torch.inf, choice)
    if top_groups < groups:
        members = choice.unflatten(1, (groups, -1))
        best = members.sort(dim=2, descending=True).values
        of_group = best[..., 0] if bias is None else best[..., :2].sum(dim=2)
        kept = _greatest(of_group, top_groups)
        allowed = torch.zeros_like(of_group, dtype=torch.bool).scatter(1, kept, True)
        choice = torch.where(allowed.unsqueeze(2), members, -torch.inf).flatten(1)
    experts = _greatest(choice, top_k)
    weights = scores.gather(1, experts)
    if renormalize:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    return Routing(experts.int(), weights * scale)


def new_weight(
    num_experts: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    scheme: Scheme,
    gated: bool,
    plain: Callable[..., LinearWeight] = linear.new_weight,
    quantized: Callable[..., LinearWeight] = quantization.new_weight,
    microscaled: Callable[..., LinearWeight] = mxfp4.new_weight,
) -> SeparateExperts:
    """Experts that are projections of a face, which the last arguments make."""

    def part() -> LinearWeight:
        if scheme is None:
            return plain(out_features, in_features, dtype, gated)
        if scheme == "fp8":
            return ScaledWeight(out_features, in_features, dtype, gated)
        if scheme == "mxfp4":
            return microscaled(out_features, in_features, dtype, gated)
        return quantized(out_features, in_features, dtype, scheme, gated)

    return SeparateExperts([part() for _ in range(num_experts)], scheme)


def moe(
    x: torch.Tensor,
    routing: Routing,
    gate_up: ExpertWeight,
    down: ExpertWeight,
    activation: Activation,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
) -> torch.Tensor:
    ups, downs = parts_of(gate_up), parts_of(down)
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.zeros(x.shape, dtype=wide, device=x.device)
    for token, experts in enumerate(routing.experts.tolist()):
        for column, expert in enumerate(experts):
            if 0 <= expert < gate_up.num_experts:
                hidden = ups[expert].multiply_gated(x[token : token + 1], row_of(gate_up_bias, expert), activation)
                made = downs[expert].multiply(hidden, row_of(down_bias, expert), None, x.dtype)[0]
                out[token] += routing.weights[token, column].to(wide) * made.to(wide)
    return out.to(x.dtype)


def parts_of(weight: ExpertWeight) -> list[LinearWeight]:
    """The projections of a weight that has one for each expert. Raises ``ValueError`` for one of another face."""
    if not isinstance(weight, SeparateExperts):
        raise ValueError("gate_up and down must both be made by the face that multiplies them")
    return weight.parts


def row_of(bias: torch.Tensor | None, expert: int) -> torch.Tensor | None:
    """What an expert's projection adds, of ``[num_experts, out_features]``."""
    return None if bias is None else bias[expert]


def rounded_to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``[n, k]`` -> e4m3 ``[n, k]`` and fp32 scales ``[n]``; a row with an infinity or NaN gets the scale NaN."""
    rows = rows.float()
    peak = rows.abs().amax(dim=1)
    # A tensor over a tensor: torch rounds the quotient of a tensor and a number twice.
    scales = peak / torch.full_like(peak, LARGEST_FP8)
    scales = torch.where(peak.isfinite(), scales, torch.nan)
    divisors = torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    units = torch.where(scales.unsqueeze(1) > 0, rows / divisors, 0.0)
    return units.to(torch.float8_e4m3fn), scales


def _greatest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of the greatest of each row, in order; the lower one first among equals."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]
