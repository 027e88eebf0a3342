"""Projections with weights of 8 or 4 bits: made here, multiplied by ``ops.linear`` as any other weight.

An entry of a weight is ``(q - zero) * scale``: ``q`` is unsigned (0 to 255, or to 15), ``zero`` and ``scale`` belong to
a row and a group of ``group_size`` input columns.
"""

from typing import NamedTuple

import torch

from vllm_kernels.backend import face_of
from vllm_kernels.checks import check_dtype, check_floating, check_shape, where
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops.linear import check_sizes
from vllm_kernels.quantized_weight import ACTIVATION_GROUP, Quantization, QuantizedWeight

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, of eight, that nibble 0, 1, 2, ... of a word of an AWQ checkpoint belongs to; nibble 0 is the lowest."""


class Unpacked(NamedTuple):
    """A quantised weight of a checkpoint, in the form that ``fill_quantized`` takes.

    Args:
        q: uint8 ``[out_features, in_features]``.
        scales: ``[out_features, groups]``, floating point.
        zeros: uint8 ``[out_features, groups]``.
        order: int64 ``[in_features]``, or None: column ``i`` of ``q`` meets column ``order[i]`` of the activations.
    """

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor | None = None


def new_weight(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    bits: int,
    group_size: int | None = None,
    activation_bits: int | None = 8,
    gated: bool = False,
) -> LinearWeight:
    """A quantised weight that is not filled yet: ``ops.linear.fill`` quantises rows of floats, ``fill_quantized`` takes
    rows that are quantised already.

    8 bits are filled symmetrically: ``scale = max|w| / 127`` and ``zero = 128``. 4 bits use all sixteen values between
    the least and the greatest entry of a group (0 included): ``scale = (max - min) / 15`` and
    ``zero = round(-min / scale)``. In both ``q = round(w / scale) + zero``, within the bits. The scales of groups are
    rounded to 11 significant bits before, and ``q`` makes up for it.

    With ``activation_bits=8`` the activations are quantised as they come, for each row and each ``group_size`` columns
    (at most 512, and 512 where a row of the weight has one scale only): ``scale = max|x| / 127``,
    ``q = round(x * (127 / max|x|))``. Products of integers are summed exactly, groups in fp32 in their order, so that a
    row's result depends on no other row. Without, activations stay as they are and sums are fp32.

    Args:
        out_features, in_features: its rows and columns.
        dtype: of the activations that it meets, and of the results.
        device: where it lives; None for the one that torch takes by default.
        bits: 8 or 4.
        group_size: input columns that share a scale: a multiple of 8, and of 512 beyond that; the last group may be
            shorter. None: all of them.
        activation_bits: 8, or None: weights only.
        gated: for ``gated_linear``; then ``out_features`` counts gate and value.

    Raises:
        ValueError: an argument is not as described.
    """
    check_sizes(out_features, in_features, gated)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}")
    scheme = scheme_of(in_features, bits, group_size, activation_bits)
    device = where(device)
    with device:
        face = face_of("quantization", device)
        weight: LinearWeight = face.new_weight(out_features, in_features, dtype, scheme, gated)
    return weight


def fill_quantized(
    weight: LinearWeight,
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    start: int = 0,
    order: torch.Tensor | None = None,
) -> None:
    """Store the rows ``[start, start + len(q))`` of a weight that a checkpoint has in quantised form.

    Args:
        weight: from ``new_weight`` of this module.
        q: uint8 ``[n, in_features]``, below ``2 ** bits``.
        scales: ``[n, groups]``, floating point. Where there are several groups, 11 significant bits are kept: those of
            fp16 and bf16 are exact.
        zeros: uint8 ``[n, groups]``, below ``2 ** bits``.
        start: first row.
        order: see ``Unpacked``; the same for all rows of a weight.

    Raises:
        ValueError: shapes, dtypes, values or the weight itself do not fit.
    """
    if not isinstance(weight, QuantizedWeight):
        raise ValueError("weight must be a quantised one (ops.quantization.new_weight)")
    check_shape("q", q, (None, weight.in_features))
    check_entries(weight.scheme.bits, weight.groups, q, scales, zeros)
    if start < 0 or start + len(q) > weight.out_features:
        raise ValueError(f"rows {start} to {start + len(q)} are outside of the weight's {weight.out_features}")
    _set_order(weight, order, whole=len(q) == weight.out_features, first=start == 0)
    weight.fill_quantized(q, scales, zeros, start)


def scheme_of(in_features: int, bits: int, group_size: int | None, activation_bits: int | None) -> Quantization:
    """How a weight is stored, from the arguments of ``new_weight``. Raises ``ValueError`` naming a wrong one."""
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if activation_bits not in (8, None):
        raise ValueError(f"activation_bits must be 8 or None, got {activation_bits}")
    if group_size is not None:
        step = 8 if group_size <= ACTIVATION_GROUP else ACTIVATION_GROUP
        if group_size < 1 or group_size % step:
            raise ValueError(f"group_size must be a multiple of 8, and of 512 beyond that, got {group_size}")
        if group_size >= in_features:
            group_size = None
    return Quantization(bits, group_size, activation_bits)


def check_entries(bits: int, groups: int, q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    """Raise ``ValueError`` unless rows of small integers have scales and zeros that fit, and values below 2^bits."""
    for name, tensor in (("scales", scales), ("zeros", zeros)):
        check_shape(name, tensor, (len(q), groups))
    check_floating("scales", scales)
    for name, tensor in (("q", q), ("zeros", zeros)):
        check_dtype(name, tensor, torch.uint8)
        if bits < 8 and tensor.numel() and int(tensor.max()) >= 1 << bits:
            raise ValueError(f"{name} must be below {1 << bits}, got {int(tensor.max())}")


def unpack_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> Unpacked:
    """The 4-bit weight of an AWQ checkpoint (arXiv:2306.00978; its ``gemm`` version).

    Eight neighbouring output columns stand in one word, and their nibbles, from the lowest on, are those of columns
    0, 2, 4, 6, 1, 3, 5, 7.

    Args:
        qweight: int32 ``[in_features, out_features / 8]``.
        qzeros: int32 ``[groups, out_features / 8]``, packed alike.
        scales: ``[groups, out_features]``.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    check_dtype("qweight", qweight, torch.int32)
    check_shape("qweight", qweight, (None, None))
    words = qweight.shape[1]
    _check_packed(qzeros, scales, words, 8 * words)

    def unpacked(packed: torch.Tensor) -> torch.Tensor:
        nibbles = _fields(packed, 4)
        result = torch.empty_like(nibbles)
        result[..., _AWQ_COLUMNS] = nibbles
        return result.flatten(1).t().contiguous()

    return Unpacked(unpacked(qweight), scales.t().contiguous(), unpacked(qzeros))


def unpack_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    *,
    bits: int = 4,
    zero_offset: int = 1,
) -> Unpacked:
    """The weight of a GPTQ checkpoint (arXiv:2210.17323).

    Eight (four of 8 bits) neighbouring input columns stand in one word of ``qweight``, and as many neighbouring output
    columns in one of ``qzeros``; the first is the lowest nibble. The first version of the format (``gptq``) stores
    ``zero - 1``, where 0 wraps around to the greatest value; the second (``gptq_v2``) stores ``zero``.

    Args:
        qweight: int32 ``[in_features * bits / 32, out_features]``.
        qzeros: int32 ``[groups, out_features * bits / 32]``.
        scales: ``[groups, out_features]``.
        g_idx: int ``[in_features]``, the group of each input column, or None: in order. Where the columns of a group
            are not neighbours ("activation order"), the result has them sorted by group, and says so in ``order``; each
            group must have as many columns as the others then.
        bits: 4 or 8.
        zero_offset: what was subtracted from the zeros: 1, or 0 for the second version.

    Raises:
        ValueError: shapes, dtypes or the groups do not fit.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    check_dtype("qweight", qweight, torch.int32)
    check_shape("qweight", qweight, (None, None))
    rows, out_features = qweight.shape
    in_features, groups = rows * 32 // bits, scales.shape[0]
    _check_packed(qzeros, scales, out_features * bits // 32, out_features)
    q = _fields(qweight.t().contiguous(), bits).flatten(1)
    stored = _fields(qzeros, bits).flatten(1).t().contiguous()
    zeros = (stored + zero_offset) & ((1 << bits) - 1)
    order = None
    if g_idx is not None:
        check_shape("g_idx", g_idx, (in_features,))
        group_of = g_idx.long()
        size = -(-in_features // groups)
        if not torch.equal(group_of, torch.arange(in_features, device=g_idx.device) // size):
            if not torch.equal(group_of.bincount(minlength=groups), group_of.new_full((groups,), size)):
                raise ValueError(f"g_idx must give each of {groups} groups {size} columns")
            order = group_of.argsort(stable=True)
            q = q[:, order]
    return Unpacked(q, scales.t().contiguous(), zeros, order)


def _set_order(weight: QuantizedWeight, order: torch.Tensor | None, *, whole: bool, first: bool) -> None:
    """One order serves all rows: the first that are stored decide."""
    if order is not None:
        check_shape("order", order, (weight.in_features,))
        check_dtype("order", order, torch.int64)
        if not torch.equal(order.sort().values, torch.arange(weight.in_features, device=order.device)):
            raise ValueError("order must have every column once")
        # Where the weight is: an index of main memory would go up to a GPU anew, and be waited for, at each product.
        order = order.to(next(weight.tensors()).device)
    before = weight.order
    if whole or first:
        weight.order = order
    elif before is not order and (before is None or order is None or not torch.equal(before, order)):
        raise ValueError("order must be that of the weight's other rows")


def _check_packed(qzeros: torch.Tensor, scales: torch.Tensor, words: int, out_features: int) -> None:
    check_shape("scales", scales, (None, out_features))
    check_floating("scales", scales)
    check_shape("qzeros", qzeros, (scales.shape[0], words))
    check_dtype("qzeros", qzeros, torch.int32)


def _fields(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of ``bits`` in each int32, the lowest first: ``[..., n]`` -> uint8 ``[..., n, 32 / bits]``."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).to(torch.uint8)
