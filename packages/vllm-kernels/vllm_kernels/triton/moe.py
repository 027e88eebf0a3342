import torch

from vllm_kernels.eager import moe as eager
from vllm_kernels.expert_weight import ExpertWeight, Routing, Scheme
from vllm_kernels.linear_weight import Activation
from vllm_kernels.mxfp4_weight import BLOCK
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.reference.moe import rounded_to_fp8
from vllm_kernels.reference.mxfp4 import numbers, rounded
from vllm_kernels.reference.quantization import kept_scales, quantize
from vllm_kernels.triton import moe_route
from vllm_kernels.triton.device import has_fp8
from vllm_kernels.triton.kernel import FLOATS
from vllm_kernels.triton.moe_align import Blocks, align
from vllm_kernels.triton.moe_combine import combine
from vllm_kernels.triton.moe_product import Rows, Shape, multiply, rows_of_block
from vllm_kernels.triton.mxfp4 import tops_of
from vllm_kernels.triton.quantized_rounding import round_activations
from vllm_kernels.triton.quantized_sums import bytes_of_row
from vllm_kernels.triton.rounded import round_tokens
from vllm_kernels.triton.words import apart, are_words, from_words, to_words, with_zeros, words_of_row


class TritonExperts(ExpertWeight):
    """All experts in one tensor ``[num_experts, out_features, ..]``.

    Entries are numbers of ``dtype`` or e4m3, bytes, or two of 4 bits a byte, the even column below. Small integers of
    4 bits that meet activations as they are, are ``words``, and ``scales`` has their zeros, too. Of MXFP4, ``tops``
    has the greatest scale of each row.
    """

    def __init__(
        self, num_experts: int, out_features: int, in_features: int, dtype: torch.dtype, scheme: Scheme, gated: bool
    ) -> None:
        super().__init__(num_experts, out_features, in_features, dtype, scheme, gated)
        self.group = scheme.group_size or in_features if isinstance(scheme, Quantization) else in_features
        rows = (num_experts, out_features)
        self.scales: torch.Tensor | None = None
        self.zeros: torch.Tensor | None = None
        self.tops: torch.Tensor | None = None
        if scheme is None:
            self.entries = torch.empty(*rows, in_features, dtype=dtype)
        elif scheme == "fp8":
            self.entries = torch.empty(*rows, in_features, dtype=torch.float8_e4m3fn)
            self.scales = torch.empty(rows)
        elif scheme == "mxfp4":
            self.entries = torch.empty(*rows, in_features // 2, dtype=torch.uint8)
            self.scales = torch.empty(*rows, in_features // BLOCK, dtype=torch.uint8)
            self.tops = torch.empty(rows, dtype=torch.uint8)
        elif are_words(scheme):
            self.entries = torch.empty(*rows, 4 * words_of_row(in_features), dtype=torch.uint8)
            self.scales = torch.empty(*rows, self.groups, dtype=torch.int32)
        else:
            self.entries = torch.empty(*rows, bytes_of_row(in_features, scheme.bits), dtype=torch.uint8)
            self.scales = torch.empty(*rows, self.groups)
            self.zeros = torch.empty(*rows, self.groups, dtype=torch.uint8)

    def fill(self, expert: int, rows: torch.Tensor, start: int) -> None:
        if self.scheme is None:
            self.entries[expert, start : start + len(rows)] = rows
        elif self.scheme == "fp8":
            self.fill_fp8(expert, *rounded_to_fp8(rows), start)
        elif self.scheme == "mxfp4":
            self.fill_mxfp4(expert, *rounded(rows), start)
        else:
            self.fill_quantized(expert, *quantize(rows, self.scheme), start)

    def fill_quantized(
        self, expert: int, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int
    ) -> None:
        scales = kept_scales(scales)
        if isinstance(self.scheme, Quantization) and are_words(self.scheme):
            self._store(expert, start, to_words(q), with_zeros(scales, zeros), None)
            return
        if isinstance(self.scheme, Quantization) and self.scheme.bits == 4:
            q = torch.nn.functional.pad(q, (0, -self.in_features % 8))
            q = q[:, 0::2] | q[:, 1::2] << 4
        self._store(expert, start, q, scales, zeros)

    def fill_fp8(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        self._store(expert, start, entries, scales, None)

    def fill_mxfp4(self, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int) -> None:
        self._store(expert, start, entries, scales, None)
        if self.tops is not None:
            self.tops[expert, start : start + len(entries)] = tops_of(scales)

    def rows(self, expert: int, ids: torch.Tensor) -> torch.Tensor:
        entries = self.entries[expert][ids]
        if self.scales is None:
            return entries
        scales = self.scales[expert][ids]
        if self.scheme == "mxfp4":
            return numbers(entries, scales).to(self.dtype)
        if not isinstance(self.scheme, Quantization):
            return (entries.float() * scales.unsqueeze(1)).to(self.dtype)
        if self.zeros is None:
            entries, (scales, zeros) = from_words(entries, self.in_features), apart(scales)
        else:
            zeros = self.zeros[expert][ids]
            if self.scheme.bits == 4:
                entries = torch.stack((entries & 15, entries >> 4), dim=-1).flatten(1)[:, : self.in_features]
        wide_scales, zeros = (
            table.repeat_interleave(self.group, dim=1)[:, : self.in_features] for table in (scales, zeros)
        )
        return ((entries.float() - zeros) * wide_scales).to(self.dtype)

    def multiply(
        self,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        blocks: Blocks,
        count: int,
        pairs_of_row: int,
        gate: Activation | None,
    ) -> torch.Tensor:
        """Rows ``[count / pairs_of_row, in_features]``, contiguous -> ``[count, ..]``, a row for each pair.

        What is nobody's pair is left unwritten.
        """
        out = x.new_empty(count, self.out_features // 2 if gate else self.out_features)
        shape = Shape.choose(self.out_features, self.in_features, self.scheme, self.dtype, blocks.block_m, x.device)
        multiply(
            self._rows_of(x),
            self.entries,
            self.scales,
            self.zeros,
            self.tops,
            None if bias is None else bias.contiguous(),
            out,
            blocks,
            pairs_of_row,
            gate,
            shape,
        )
        return out

    def _rows_of(self, x: torch.Tensor) -> Rows:
        if self.scheme == "fp8":
            return Rows(*round_tokens(x, torch.float8_e4m3fn, None))
        if isinstance(self.scheme, Quantization) and self.scheme.activation_bits:
            rounded = round_activations(x, self.scheme)
            return Rows(rounded.q, rounded.scales, rounded.sums)
        return Rows(x)

    def _store(
        self, expert: int, start: int, entries: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> None:
        end = start + len(entries)
        self.entries[expert, start:end] = entries
        if self.scales is not None:
            self.scales[expert, start:end] = scales
        if self.zeros is not None and zeros is not None:
            self.zeros[expert, start:end] = zeros


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
    serve = moe_route.route if logits.dtype in FLOATS else eager.route
    return serve(logits, top_k, score, renormalize, scale, bias, groups, top_groups)


def new_weight(
    num_experts: int, out_features: int, in_features: int, dtype: torch.dtype, scheme: Scheme, gated: bool
) -> ExpertWeight:
    without_fp8 = scheme == "fp8" and not has_fp8(torch.get_default_device())
    if dtype not in FLOATS or without_fp8:
        return eager.new_weight(num_experts, out_features, in_features, dtype, scheme, gated)
    return TritonExperts(num_experts, out_features, in_features, dtype, scheme, gated)


def moe(
    x: torch.Tensor,
    routing: Routing,
    gate_up: ExpertWeight,
    down: ExpertWeight,
    activation: Activation,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
) -> torch.Tensor:
    if not isinstance(gate_up, TritonExperts) or not isinstance(down, TritonExperts):
        return eager.moe(x, routing, gate_up, down, activation, gate_up_bias, down_bias)
    num_experts, num_pairs = gate_up.num_experts, routing.experts.numel()
    blocks = align(routing, num_experts, rows_of_block(num_pairs, num_experts, x.dtype, (gate_up.scheme, down.scheme)))
    hidden = gate_up.multiply(x.contiguous(), gate_up_bias, blocks, num_pairs, routing.experts.shape[1], activation)
    made = down.multiply(hidden, down_bias, blocks, num_pairs, 1, None)
    out = x.new_empty(x.shape)
    combine(made, routing, num_experts, out)
    return out
