"""Mixture of experts (arXiv:1701.06538): a router sends each token to a few feed-forward layers of many."""

from typing import Literal, get_args

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.expert_weight import ExpertWeight, Routing, Scheme
from vllm_kernels.linear_weight import Activation
from vllm_kernels.ops.linear import ACTIVATIONS, check_sizes
from vllm_kernels.ops.mxfp4 import check_columns, checked_entries
from vllm_kernels.ops.quantization import check_entries, scheme_of
from vllm_kernels.quantized_weight import Quantization

Score = Literal["softmax", "sigmoid"]
Format = Literal["int8", "int4", "fp8", "mxfp4"]


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    score: Score = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
) -> Routing:
    """The experts of each token, best first, and their weights.

    Scores are the softmax of all logits (Switch, arXiv:2101.03961; Mixtral, arXiv:2401.04088) or each logit's sigmoid.
    The ``top_k`` greatest are chosen; among equals the lower id wins. A weight is the expert's score, over the sum of
    the chosen (plus 1e-20) with ``renormalize``, times ``scale``. The softmax of the chosen logits alone, as gpt-oss
    has it, is the same as that of all, renormalised.

    ``bias`` is added to the scores for the choice only (arXiv:2408.15664). With ``groups``, which have neighbouring
    experts, a token's experts come from its ``top_groups`` best ones: by their best expert, as in DeepSeek-V2
    (arXiv:2405.04434, device-limited routing), or, with a bias, by the sum of their two best, as in DeepSeek-V3
    (arXiv:2412.19437, node-limited routing).

    All in fp32 (fp64 for fp64). A row with NaN gets experts that exist, and NaN for weights where its scores are.

    Args:
        logits: ``[n, num_experts]``, floating point.
        top_k: experts of a token.
        score: ``softmax`` or ``sigmoid``.
        renormalize: whether weights add up to ``scale``.
        scale: of the weights ("routed scaling factor").
        bias: ``[num_experts]``, floating point, or None.
        groups: of equally many experts.
        top_groups: of them that a token may choose from.

    Raises:
        ValueError: an argument is not as described, or the chosen groups have fewer than ``top_k`` experts.
    """
    check_shape("logits", logits, (None, None))
    check_floating("logits", logits)
    num_experts = logits.shape[1]
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
    if bias is not None:
        check_shape("bias", bias, (num_experts,))
        check_floating("bias", bias)
    if groups < 1 or num_experts % groups:
        raise ValueError(f"groups must divide the {num_experts} experts, got {groups}")
    if not 1 <= top_groups <= groups:
        raise ValueError(f"top_groups must be from 1 to {groups}, got {top_groups}")
    available = num_experts // groups * top_groups
    if not 1 <= top_k <= available:
        raise ValueError(f"top_k must be from 1 to the {available} experts to choose from, got {top_k}")
    routing: Routing = face_of("moe", logits.device).route(
        logits, top_k, score, renormalize, scale, bias, groups, top_groups
    )
    return routing


def new_weight(
    num_experts: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    gated: bool = False,
    format: Format | None = None,
    group_size: int | None = None,
    activation_bits: int | None = 8,
) -> ExpertWeight:
    """One projection of all experts, not filled yet.

    Entries are stored in ``dtype``, or as ``ops.quantization.new_weight`` describes 8 and 4 bits, or as fp8 (e4m3,
    arXiv:2209.05433) with a scale for each row: ``scale = max|w| / 448``, ``entry = round(w / scale)``; activations are
    rounded alike as they come, with a scale for each token, and products are summed in fp32. ``mxfp4`` is as
    ``ops.mxfp4.new_weight`` has it.

    Args:
        num_experts: how many.
        out_features, in_features: rows and columns of one.
        dtype: of the activations that it meets, and of the results.
        device: where it lives; None for the one that torch takes by default.
        gated: holds gate and value, one above the other; ``out_features`` counts both.
        format: ``int8``, ``int4``, ``fp8``, ``mxfp4``, or None.
        group_size, activation_bits: of ``int8`` and ``int4``, see ``ops.quantization.new_weight``.

    Raises:
        ValueError: an argument is not as described.
    """
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    check_sizes(out_features, in_features, gated)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    if format is not None and format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))} or None, got {format!r}")
    scheme: Scheme = None
    if format == "mxfp4":
        check_columns(in_features)
    if format == "fp8" or format == "mxfp4":
        scheme = format
    elif format is not None:
        scheme = scheme_of(in_features, 8 if format == "int8" else 4, group_size, activation_bits)
    if group_size is not None and not isinstance(scheme, Quantization):
        raise ValueError(f"group_size is for int8 and int4, got {group_size} for {format}")
    device = where(device)
    with device:
        weight: ExpertWeight = face_of("moe", device).new_weight(
            num_experts, out_features, in_features, dtype, scheme, gated
        )
    return weight


def fill(weight: ExpertWeight, expert: int, rows: torch.Tensor, start: int = 0) -> None:
    """Store rows ``[start, start + len(rows))`` of one expert, rounded as the weight's format has it.

    Args:
        weight: to store in.
        expert: of ``[0, num_experts)``.
        rows: ``[n, in_features]``, floating point, any strides; it is not kept.
        start: first row.

    Raises:
        ValueError: shape or dtype do not fit, or expert or rows are outside of the weight.
    """
    _check_rows("rows", weight, expert, rows, start)
    check_floating("rows", rows)
    weight.fill(expert, rows, start)


def fill_quantized(
    weight: ExpertWeight, expert: int, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, start: int = 0
) -> None:
    """Store rows of one expert that a checkpoint has as small integers.

    Args:
        weight: with ``format`` ``int8`` or ``int4``.
        expert: of ``[0, num_experts)``.
        q, scales, zeros, start: see ``ops.quantization.fill_quantized``.

    Raises:
        ValueError: shapes, dtypes, values or the weight itself do not fit.
    """
    if not isinstance(weight.scheme, Quantization):
        raise ValueError("weight must be of format int8 or int4")
    _check_rows("q", weight, expert, q, start)
    check_entries(weight.scheme.bits, weight.groups, q, scales, zeros)
    weight.fill_quantized(expert, q, scales, zeros, start)


def fill_fp8(weight: ExpertWeight, expert: int, entries: torch.Tensor, scales: torch.Tensor, start: int = 0) -> None:
    """Store rows of one expert that a checkpoint has as fp8: an entry stands for itself times its scale.

    Args:
        weight: with ``format`` ``fp8``.
        expert: of ``[0, num_experts)``.
        entries: ``torch.float8_e4m3fn`` ``[n, in_features]``.
        scales: floating point, ``[n]`` (per channel) or ``[]`` (per tensor).
        start: first row.

    Raises:
        ValueError: shapes, dtypes or the weight itself do not fit.
    """
    if weight.scheme != "fp8":
        raise ValueError("weight must be of format fp8")
    _check_rows("entries", weight, expert, entries, start)
    check_dtype("entries", entries, torch.float8_e4m3fn)
    check_floating("scales", scales)
    if scales.ndim:
        check_shape("scales", scales, (len(entries),))
    weight.fill_fp8(expert, entries, scales.expand(len(entries)), start)


def fill_mxfp4(weight: ExpertWeight, expert: int, blocks: torch.Tensor, scales: torch.Tensor, start: int = 0) -> None:
    """Store rows of one expert that a checkpoint has as MXFP4.

    Args:
        weight: with ``format`` ``mxfp4``.
        expert: of ``[0, num_experts)``.
        blocks, scales, start: see ``ops.mxfp4.fill_mxfp4``.

    Raises:
        ValueError: shapes, dtypes or the weight itself do not fit.
    """
    if weight.scheme != "mxfp4":
        raise ValueError("weight must be of format mxfp4")
    _check_expert(weight, expert)
    entries = checked_entries(weight.in_features, blocks, scales)
    _check_span(weight, len(entries), start)
    weight.fill_mxfp4(expert, entries, scales, start)


def rows(weight: ExpertWeight, expert: int, ids: torch.Tensor) -> torch.Tensor:
    """What is stored of rows of one expert.

    Args:
        weight: any.
        expert: of ``[0, num_experts)``.
        ids: ``[n]``, int64, each in ``[0, out_features)``.

    Returns:
        ``[n, in_features]``, dtype of the weight: a new tensor.

    Raises:
        ValueError: shape, dtype or expert do not fit.
        IndexError: an id is outside of the weight.
    """
    _check_expert(weight, expert)
    check_shape("ids", ids, (None,))
    check_dtype("ids", ids, torch.int64)
    if len(ids):
        low, high = torch.aminmax(ids)
        if low < 0 or high >= weight.out_features:
            raise IndexError(f"an id is outside of the {weight.out_features} rows")
    return weight.rows(expert, ids)


def moe(
    x: torch.Tensor,
    routing: Routing,
    gate_up: ExpertWeight,
    down: ExpertWeight,
    activation: Activation = "silu",
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``sum_j weights[:, j] * down_e(activation(gate_e(x)) * value_e(x))`` with ``e = experts[:, j]``.

    Products are summed in fp32 (fp64 for fp64); what an expert makes in between is rounded to the type of ``x``. The
    sum over a token's experts is one in fp32, in the order of the routing, rounded once: a row of the result is the
    same bits every time.

    Args:
        x: ``[n, hidden]``, dtype of the weights.
        routing: of the ``n`` tokens, from ``route`` or made by hand.
        gate_up: gated, ``[2 * intermediate, hidden]`` an expert.
        down: not gated, ``[hidden, intermediate]`` an expert.
        activation: ``silu``, ``gelu`` (exact), ``gelu_tanh`` or ``swigluoai``; see ``ops.activation``.
        gate_up_bias: ``[num_experts, 2 * intermediate]``, dtype of ``x``, added to gate and value; or None.
        down_bias: ``[num_experts, hidden]``, dtype of ``x``, added before an expert's result is weighted; or None.

    Returns:
        ``[n, hidden]``, dtype of ``x``.

    Raises:
        ValueError: sizes, dtypes or the name of the activation do not fit.
    """
    if not gate_up.gated:
        raise ValueError("gate_up must be gated")
    if down.gated:
        raise ValueError("down must not be gated")
    check_shape("x", x, (None, gate_up.in_features))
    check_dtype("x", x, gate_up.dtype)
    if down.dtype != gate_up.dtype:
        raise ValueError(f"down must be {gate_up.dtype}, got {down.dtype}")
    wanted = (gate_up.num_experts, gate_up.in_features, gate_up.out_features // 2)
    sizes = (down.num_experts, down.out_features, down.in_features)
    if sizes != wanted:
        raise ValueError(f"down must be {list(wanted)} (experts, rows, columns), got {list(sizes)}")
    check_shape("experts", routing.experts, (len(x), None))
    check_dtype("experts", routing.experts, torch.int32)
    check_shape("weights", routing.weights, tuple(routing.experts.shape))
    check_dtype("weights", routing.weights, torch.float32, torch.float64)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for name, bias, weight in (("gate_up_bias", gate_up_bias, gate_up), ("down_bias", down_bias, down)):
        if bias is not None:
            check_shape(name, bias, (weight.num_experts, weight.out_features))
            check_dtype(name, bias, x.dtype)
    result: torch.Tensor = face_of("moe", x.device).moe(x, routing, gate_up, down, activation, gate_up_bias, down_bias)
    return result


def _check_expert(weight: ExpertWeight, expert: int) -> None:
    if not 0 <= expert < weight.num_experts:
        raise ValueError(f"expert must be from 0 to {weight.num_experts - 1}, got {expert}")


def _check_rows(name: str, weight: ExpertWeight, expert: int, tensor: torch.Tensor, start: int) -> None:
    _check_expert(weight, expert)
    check_shape(name, tensor, (None, weight.in_features))
    _check_span(weight, len(tensor), start)


def _check_span(weight: ExpertWeight, count: int, start: int) -> None:
    if start < 0 or start + count > weight.out_features:
        raise ValueError(f"rows {start} to {start + count} are outside of the weight's {weight.out_features}")
