"""Quantised weights: what each face makes of them, against float64 on the numbers that they stand for."""

import pytest
import torch
from torch.nn import functional

from tests.kernels.native_build import kernels_from
from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.cpu import native
from vllm_kernels.eager.quantization import CompactWeight
from vllm_kernels.ops.linear import fill, gated_linear, linear
from vllm_kernels.ops.linear import new_weight as new_plain_weight
from vllm_kernels.ops.quantization import fill_quantized, new_weight, unpack_awq, unpack_gptq
from vllm_kernels.quantized_weight import Quantization

SCHEMES = {
    "int8": {"bits": 8},
    "int8 group 64": {"bits": 8, "group_size": 64},
    "int4": {"bits": 4, "group_size": 128},
    "int4 group 24": {"bits": 4, "group_size": 24},
    "int4 whole rows": {"bits": 4},
    "int8 weight only": {"bits": 8, "activation_bits": None},
    "int4 weight only": {"bits": 4, "group_size": 32, "activation_bits": None},
    "int4 group 192 weight only": {"bits": 4, "group_size": 192, "activation_bits": None},
}
INTEGER = [name for name in SCHEMES if "only" not in name]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GATES = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def filled(rows: torch.Tensor, scheme: str, **options):
    weight = new_weight(*rows.shape, rows.dtype, **SCHEMES[scheme], **options)
    fill(weight, rows)
    return weight


def activations_stood_for(x: torch.Tensor, scheme: str) -> torch.Tensor:
    """What is left of activations when they are quantised, group by group, in float64 but for the factor 127 / peak."""
    options = SCHEMES[scheme]
    if options.get("activation_bits", 8) is None:
        return x.double()
    pieces = []
    for piece in x.float().split(min(options.get("group_size") or 512, 512), dim=1):
        peak = piece.abs().max(dim=1, keepdim=True).values
        units = (piece * (torch.full_like(peak, 127) / peak)).round()
        pieces.append(units.double() * peak.double() / 127)
    return torch.cat(pieces, dim=1)


def exact_product(x: torch.Tensor, weight, scheme: str) -> torch.Tensor:
    """Of the numbers that the weight's own entries stand for: rows() of a fp32 twin has them unrounded."""
    return activations_stood_for(x, scheme) @ weight.rows(torch.arange(weight.out_features)).double().T


ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def close(result: torch.Tensor, exact: torch.Tensor, face: str = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """``dtype``: of the activations; the eager face rounds the entries of both sides to it."""
    if face == "eager" and dtype != torch.float32:
        return bool((result - exact).norm() < 2 * ROUNDING[dtype] * exact.norm())
    rounding = ROUNDING[result.dtype]
    return torch.allclose(result.double(), exact, rtol=rounding, atol=rounding * exact.abs().max().item() / 4)


def twins(rows: torch.Tensor, scheme: str, dtype: torch.dtype, **options):
    """The weight in ``dtype`` and in fp32, of the same entries."""
    rows = rows.to(dtype)
    return filled(rows, scheme, **options), filled(rows.float(), scheme, **options)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_equal_float64(face, scheme, dtype):
    torch.manual_seed(0)
    for count, out_features, in_features in ((1, 100, 1100), (7, 64, 37), (20, 130, 512)):
        weight, wide = twins(torch.randn(out_features, in_features), scheme, dtype)
        x = torch.randn(count, in_features).to(dtype)
        exact = exact_product(x, wide, scheme)
        assert close(linear(x, weight, out_dtype=torch.float32), exact, face, dtype)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4 weight only"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("extras", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
def test_bias_and_residual_are_added(face, scheme, dtype, extras):
    torch.manual_seed(0)
    weight, wide = twins(torch.randn(71, 130), scheme, dtype)
    x = torch.randn(2, 3, 130).to(dtype)
    bias = torch.randn(71).to(dtype) if "bias" in extras else None
    residual = torch.randn(2, 3, 71).to(dtype) if "residual" in extras else None
    exact = exact_product(x.view(6, 130), wide, scheme).view(2, 3, 71)
    for extra in (bias, residual):
        exact = exact if extra is None else exact + extra.double()
    result = linear(x, weight, bias, residual=residual)
    assert result.dtype == dtype
    assert close(result, exact, face, dtype)


@pytest.mark.parametrize("scheme", [None, "int8", "int4 weight only"])
def test_bias_and_residual_may_be_parts_of_wider_tensors(face, scheme):
    torch.manual_seed(0)
    rows, x = torch.randn(64, 128), torch.randn(5, 128)
    weight = (
        new_plain_weight(64, 128, torch.float32)
        if scheme is None
        else new_weight(64, 128, torch.float32, **SCHEMES[scheme])
    )
    fill(weight, rows)
    bias, residual = torch.randn(128)[::2], torch.randn(5, 200)[:, 1:65]
    assert (linear(x, weight, bias, residual=residual) - (linear(x, weight) + bias + residual)).abs().max() < 1e-4


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8 weight only"])
@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_products_equal_float64(face, scheme, activation, with_bias):
    torch.manual_seed(0)
    half = 41  # the second panel has nine rows of each half
    weight = filled(torch.randn(2 * half, 130) / 8, scheme, gated=True)
    x = torch.randn(9, 130)
    bias = torch.randn(2 * half) if with_bias else None
    both = exact_product(x, weight, scheme)
    if bias is not None:
        both = both + bias.double()
    result = gated_linear(x, weight, activation, bias)
    assert close(result, GATES[activation](both[:, :half]) * both[:, half:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_kept_is_as_documented(face, scheme):
    torch.manual_seed(0)
    rows = torch.randn(70, 200)
    rows[3] *= 1e-6
    rows[4] = 0
    rows[5, 100:] += 3
    rows[6, :150] = 0
    options = SCHEMES[scheme]
    bits, size = options["bits"], options.get("group_size") or 200
    kept = filled(rows, scheme).rows(torch.arange(70))
    for original, result in zip(rows.split(size, dim=1), kept.split(size, dim=1), strict=True):
        greatest, least = original.amax(1, keepdim=True), original.amin(1, keepdim=True)
        whole = torch.maximum(greatest, -least) * 2 if bits == 8 else greatest.clamp(min=0) - least.clamp(max=0)
        step = whole / (254 if bits == 8 else 15)
        # Half a step of rounding, and at the ends what the rounding of scale and zero takes.
        bound = step * (0.57 if bits == 8 else 1.02)
        assert ((result - original).abs() <= bound).all()
        errors = (result - original)[step[:, 0] > 0] / step[step > 0].unsqueeze(1)
        assert errors.square().mean().sqrt() < 0.31  # evenly distributed: the root of 1 / 12
    assert torch.equal(kept[4], torch.zeros(200))


@pytest.mark.parametrize("scheme", ["int8", "int8 group 64", "int4", "int4 group 24"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_native_rows_are_those_of_the_reference_bit_for_bit(level, scheme, dtype, gated):
    torch.manual_seed(0)
    rows = (torch.randn(134, 250) * torch.rand(134, 1) ** 8).to(dtype)
    results = []
    for name in ("reference", "cpu"):
        with use_face(name):
            weight = new_weight(134, 250, dtype, **SCHEMES[scheme], gated=gated)
            # Piece by piece, and transposed in memory.
            for start, end in ((70, 134), (0, 13), (13, 70)):
                fill(weight, rows[start:end].t().contiguous().t(), start)
            ids = torch.tensor([133, 0, 13, 13, 66, 67])
            results.append((weight.rows(ids), weight.rows(torch.arange(134))))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_batch(level, scheme, dtype, num_threads):
    torch.manual_seed(0)
    weight, x = filled(torch.randn(200, 1000).to(dtype), scheme), torch.randn(250, 1000).to(dtype)
    together = linear(x, weight)
    for begin, end in ((0, 64), (5, 6), (7, 9), (20, 23), (30, 34), (249, 250), (60, 77), (100, 250)):
        assert torch.equal(linear(x[begin:end], weight), together[begin:end])


@pytest.mark.triton
@pytest.mark.parametrize("scheme", ["int8", "int4 weight only"])
def test_a_row_does_not_depend_on_the_batch_on_a_gpu_where_asked_to(scheme):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    with use_batch_invariance(True), use_face("triton"):
        weight = filled(torch.randn(64, 2048), scheme)
        x = torch.randn(40, 2048)
        together = linear(x, weight)
        assert all(torch.equal(linear(x[i : i + 1], weight), together[i : i + 1]) for i in (0, 17, 39))


@pytest.mark.parametrize("scheme", INTEGER)
def test_products_of_integers_are_the_same_at_every_level(level, scheme):
    torch.manual_seed(0)
    weight, x = filled(torch.randn(130, 1000).bfloat16(), scheme), torch.randn(20, 1000).bfloat16()
    result = linear(x, weight, out_dtype=torch.float32)
    _same.setdefault(scheme, result)
    assert torch.equal(result, _same[scheme])


_same: dict[str, torch.Tensor] = {}
"""Results of the first level that ran."""


def test_greatest_products_do_not_overflow(level):
    # 255 * 127 * 512 is the most that a piece can come to, and no instruction may stop at 16 bits on the way.
    for scheme in ("int8", "int4 whole rows"):
        weight = new_weight(64, 2048, torch.float32, **SCHEMES[scheme])
        top = 2 ** SCHEMES[scheme]["bits"] - 1
        q = torch.full((64, 2048), top, dtype=torch.uint8)
        fill_quantized(weight, q, torch.ones(64, 1), torch.zeros(64, 1, dtype=torch.uint8))
        for sign in (1, -1):
            x = torch.full((9, 2048), 127.0 * sign)
            assert torch.equal(linear(x, weight), torch.full((9, 64), float(sign * top * 127 * 2048)))


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8 weight only"])
def test_a_row_that_is_no_number_stays_alone(face, scheme):
    torch.manual_seed(0)
    weight, x = filled(torch.randn(64, 256), scheme), torch.randn(9, 256)
    clean = linear(x, weight)
    broken = x.clone()
    broken[4, 100] = torch.nan
    result = linear(broken, weight)
    assert result[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(result[others], clean[others])


def test_rows_of_zeros_and_no_rows(face):
    weight = filled(torch.randn(70, 100), "int8")
    assert torch.equal(linear(torch.zeros(3, 100), weight), torch.zeros(3, 70))
    assert linear(torch.zeros(0, 100), weight).shape == (0, 70)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tiles_equal_vectors(emulation, scheme, monkeypatch):
    torch.manual_seed(0)
    integer, weight_only = emulation("quantized_linear"), emulation("quantized_weight_only")
    for count, out_features, in_features in ((8, 100, 1100), (250, 64, 100), (49, 130, 512)):
        weight = filled(torch.randn(out_features, in_features).bfloat16(), scheme)
        x, bias = torch.randn(count, in_features).bfloat16(), torch.randn(out_features).bfloat16()
        expected = linear(x, weight, bias, out_dtype=torch.float32)
        with kernels_from(integer), kernels_from(weight_only), monkeypatch.context() as patch:
            patch.setattr(native, "_level", "amx")
            result = linear(x, weight, bias, out_dtype=torch.float32)
            parts = [linear(x[i : i + 1], weight, bias, out_dtype=torch.float32) for i in range(3)]
        assert torch.equal(torch.cat(parts), result[:3])
        if scheme in INTEGER:
            assert torch.equal(result, expected)
        else:
            assert torch.allclose(result, expected, rtol=1e-4, atol=1e-3)


# ---- checkpoints ----


def words_of(numbers: list[int], bits: int) -> int:
    """Numbers, the lowest bits first -> the int32 that has them."""
    word = 0
    for i, number in enumerate(numbers):
        word += number << (bits * i)
    return word - (1 << 32) if word >= 1 << 31 else word


def packed_awq(numbers: torch.Tensor) -> torch.Tensor:
    """[rows, n] of 4 bits -> int32 [rows, n / 8]; written down from the format: column 0 in the lowest nibble, column 1
    in the fifth, column 2 in the second, and so on."""
    nibble_of_column = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
    rows = []
    for row in numbers.tolist():
        words = []
        for begin in range(0, len(row), 8):
            nibbles = [0] * 8
            for column, nibble in nibble_of_column.items():
                nibbles[nibble] = row[begin + column]
            words.append(words_of(nibbles, 4))
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def packed_in_order(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] -> int32 [rows, n * bits / 32]."""
    step = 32 // bits
    return torch.tensor(
        [[words_of(row[i : i + step], bits) for i in range(0, len(row), step)] for row in numbers.tolist()],
        dtype=torch.int32,
    )


def quantised(in_features: int, out_features: int, groups: int, bits: int):
    """Random q [in, out], zeros and fp16 scales [groups, out], and the matrix [in, out] that they stand for."""
    torch.manual_seed(bits)
    q = torch.randint(0, 1 << bits, (in_features, out_features))
    zeros = torch.randint(0, 1 << bits, (groups, out_features))
    scales = (torch.rand(groups, out_features) / 100 + 1e-3).half()
    size = in_features // groups
    matrix = (q - zeros.repeat_interleave(size, 0)).double() * scales.double().repeat_interleave(size, 0)
    return q, zeros, scales, matrix


def loaded(unpacked, bits: int, group_size: int, activation_bits: int | None = None):
    weight = new_weight(
        *unpacked.q.shape, torch.float32, bits=bits, group_size=group_size, activation_bits=activation_bits
    )
    half = len(unpacked.q) // 2
    for start, end in ((0, half), (half, len(unpacked.q))):
        part = slice(start, end)
        fill_quantized(weight, unpacked.q[part], unpacked.scales[part], unpacked.zeros[part], start, unpacked.order)
    return weight


def test_awq_checkpoint(face):
    q, zeros, scales, matrix = quantised(64, 24, 2, 4)
    unpacked = unpack_awq(packed_awq(q), packed_awq(zeros), scales)
    assert torch.equal(unpacked.q, q.t().to(torch.uint8))
    weight = loaded(unpacked, 4, 32)
    # Scales of fp16 are kept exactly.
    assert torch.equal(weight.rows(torch.arange(24)).double(), matrix.t().float().double())
    x = torch.randn(5, 64)
    assert torch.allclose(linear(x, weight).double(), x.double() @ matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", [1, 0])
@pytest.mark.parametrize("activation_order", [False, True])
def test_gptq_checkpoint(face, bits, offset, activation_order):
    q, zeros, scales, matrix = quantised(64, 24, 2, bits)
    stored = (zeros - offset) % (1 << bits)
    g_idx = torch.arange(64, dtype=torch.int32) // 32
    if activation_order:
        place = torch.randperm(64)  # column i of the checkpoint is column place[i] of those in order
        q, matrix, g_idx = q[place], matrix[place], g_idx[place]
    qweight = packed_in_order(q.t().contiguous(), bits).t().contiguous()
    unpacked = unpack_gptq(qweight, packed_in_order(stored, bits), scales, g_idx, bits=bits, zero_offset=offset)
    assert (unpacked.order is not None) == activation_order
    weight = loaded(unpacked, bits, 32)
    assert torch.equal(weight.rows(torch.arange(24)).double(), matrix.t().float().double())
    x = torch.randn(5, 64)
    assert torch.allclose(linear(x, weight).double(), x.double() @ matrix, rtol=1e-5, atol=1e-5)
    coarse = linear(x, loaded(unpacked, bits, 32, activation_bits=8)).double()
    assert (coarse - x.double() @ matrix).norm() < 0.02 * (x.double() @ matrix).norm()


def test_an_order_is_kept_where_the_weight_is():
    """Or each product would bring it there. A GPU's place is taken by one without memory."""
    with torch.device("meta"):
        weight = CompactWeight(2, 16, torch.float32, Quantization(4, None, None), False)
    q, factors = torch.zeros(2, 16, dtype=torch.uint8), torch.ones(2, 1)
    fill_quantized(weight, q, factors, factors.to(torch.uint8), 0, torch.arange(16).flip(0))
    assert weight.order is not None and weight.order.device.type == "meta"


def test_without_g_idx_columns_are_in_order():
    q, zeros, scales, _ = quantised(64, 24, 2, 4)
    qweight = packed_in_order(q.t().contiguous(), 4).t().contiguous()
    unpacked = unpack_gptq(qweight, packed_in_order(zeros, 4), scales, zero_offset=0)
    assert unpacked.order is None
    assert torch.equal(unpacked.q, q.t().to(torch.uint8))
    assert torch.equal(unpacked.zeros, zeros.t().to(torch.uint8))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_small(face, scheme):
    weight = filled(torch.randn(256, 1024).bfloat16(), scheme)
    options = SCHEMES[scheme]
    # Never more than 5 bytes for a group, and padding of a shorter last one.
    overhead = 5 * weight.groups * 256 + 8 * 256
    full = face == "reference" or options["bits"] == 8
    assert weight.nbytes <= 256 * 1024 * (8 if full else 4) // 8 + overhead


def test_wrong_arguments_are_named():
    def new(**options):
        return new_weight(8, 64, torch.float32, **{"bits": 4, "group_size": 32, **options})

    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        new(bits=3)
    with pytest.raises(ValueError, match="activation_bits must be 8 or None, got 4"):
        new(activation_bits=4)
    for size in (0, -8, 12, 520):
        with pytest.raises(ValueError, match=f"group_size must be a multiple of 8, and of 512 beyond that, got {size}"):
            new(group_size=size)
    with pytest.raises(ValueError, match="out_features of a gated weight must be even"):
        new_weight(7, 64, torch.float32, bits=8, gated=True)
    with pytest.raises(ValueError, match="dtype must be floating point"):
        new_weight(8, 64, torch.int8, bits=8)

    weight = new()
    q, scales, zeros = torch.zeros(8, 64, dtype=torch.uint8), torch.ones(8, 2), torch.zeros(8, 2, dtype=torch.uint8)
    order = torch.arange(64)
    with pytest.raises(ValueError, match="weight must be a quantised one"):
        fill_quantized(new_plain_weight(8, 64, torch.float32), q, scales, zeros)
    with pytest.raises(ValueError, match=r"q must have shape \[any, 64\]"):
        fill_quantized(weight, q[:, :32], scales, zeros)
    with pytest.raises(ValueError, match=r"q must be torch.uint8"):
        fill_quantized(weight, q.int(), scales, zeros)
    with pytest.raises(ValueError, match="q must be below 16, got 16"):
        fill_quantized(weight, q + 16, scales, zeros)
    with pytest.raises(ValueError, match="zeros must be below 16, got 16"):
        fill_quantized(weight, q, scales, zeros + 16)
    with pytest.raises(ValueError, match=r"scales must have shape \[8, 2\]"):
        fill_quantized(weight, q, scales[:, :1], zeros)
    with pytest.raises(ValueError, match="outside of the weight's 8"):
        fill_quantized(weight, q, scales, zeros, 1)
    with pytest.raises(ValueError, match="order must have every column once"):
        fill_quantized(weight, q, scales, zeros, 0, torch.zeros(64, dtype=torch.int64))
    fill_quantized(weight, q[:4], scales[:4], zeros[:4], 0, order)
    with pytest.raises(ValueError, match="order must be that of the weight's other rows"):
        fill_quantized(weight, q[4:], scales[4:], zeros[4:], 4, order.flip(0))

    qweight, qzeros = torch.zeros(64, 3, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"qweight must be torch.int32"):
        unpack_awq(qweight.long(), qzeros, torch.ones(2, 24))
    with pytest.raises(ValueError, match=r"qzeros must have shape \[2, 3\]"):
        unpack_awq(qweight, qzeros[:1], torch.ones(2, 24))
    with pytest.raises(ValueError, match="g_idx must give each of 2 groups 32 columns"):
        unpack_gptq(
            torch.zeros(8, 24, dtype=torch.int32), qzeros, torch.ones(2, 24), torch.zeros(64, dtype=torch.int32)
        )
