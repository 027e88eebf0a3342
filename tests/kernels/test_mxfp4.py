"""MXFP4 weights, against the tables of the specification and float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.ops.linear import fill, gated_linear, linear
from vllm_kernels.ops.linear import new_weight as new_plain_weight
from vllm_kernels.ops.mxfp4 import fill_mxfp4, new_weight

NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
"""Of the sixteen codes of e2m1: table 5 of the specification."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


def stood_for(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Byte by byte, float64: [n, groups, 16] and [n, groups] -> [n, 32 * groups]."""
    result = []
    for row, powers in zip(blocks.tolist(), scales.tolist(), strict=True):
        line = []
        for group, power in zip(row, powers, strict=True):
            scale = float("nan") if power == 255 else 2.0 ** (power - 127)
            for byte in group:
                line += [NUMBERS[byte % 16] * scale, NUMBERS[byte // 16] * scale]
        result.append(line)
    return torch.tensor(result, dtype=torch.float64)


def random_weight(out_features: int, in_features: int, dtype: torch.dtype, scales=(110, 130), gated: bool = False):
    """A weight from a checkpoint, and float64 of what it stands for."""
    weight = new_weight(out_features, in_features, dtype, gated=gated)
    blocks = torch.randint(0, 256, (out_features, in_features // 32, 16), dtype=torch.uint8)
    powers = torch.randint(*scales, (out_features, in_features // 32), dtype=torch.uint8)
    fill_mxfp4(weight, blocks, powers)
    return weight, stood_for(blocks, powers)


def error_of(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())


def test_every_code_and_scale_stands_for_what_the_specification_says(face):
    codes = torch.arange(16, dtype=torch.uint8)
    for scale in (0, 1, 7, 126, 127, 128, 252):
        weight = new_weight(1, 32, torch.float32)
        blocks = (codes | codes.flip(0) << 4).view(1, 1, 16)
        fill_mxfp4(weight, blocks, torch.full((1, 1), scale, dtype=torch.uint8))
        kept = weight.rows(torch.tensor([0]))[0].double()
        expected = [
            number * 2.0 ** (scale - 127) for pair in zip(NUMBERS, NUMBERS[::-1], strict=True) for number in pair
        ]
        assert kept.tolist() == expected
        assert kept.signbit().tolist() == torch.tensor(expected, dtype=torch.float64).signbit().tolist()
        if scale > 1:  # below, sums may lose subnormal numbers
            assert torch.equal(linear(torch.eye(32), weight)[:, 0].double(), kept)


def test_a_scale_of_255_makes_its_block_nan(face):
    weight = new_weight(2, 64, torch.float32)
    scales = torch.tensor([[127, 255], [127, 127]], dtype=torch.uint8)
    fill_mxfp4(weight, torch.full((2, 2, 16), 0x22, dtype=torch.uint8), scales)
    kept = weight.rows(torch.arange(2))
    assert kept[0, 32:].isnan().all() and (kept[0, :32] == 1).all() and (kept[1] == 1).all()
    result = linear(torch.ones(3, 64), weight)
    assert result[:, 0].isnan().all() and (result[:, 1] == 64).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_products_equal_float64(face, dtype):
    torch.manual_seed(0)
    weight, matrix = random_weight(200, 416, dtype)
    for count in (1, 20, 70):
        x, bias, residual = torch.randn(count, 416).to(dtype), torch.randn(200).to(dtype), torch.randn(count, 200)
        expected = x.double() @ matrix.T + bias.double() + residual.to(dtype).double()
        result = linear(x, weight, bias, residual=residual.to(dtype))
        assert result.dtype == dtype and error_of(result, expected) < TOLERANCE[dtype]
    assert linear(x[:0], weight).shape == (0, 200)


@pytest.mark.triton
@settings(max_examples=6, deadline=None)
@example(count=1, out_features=3, groups=33, seed=0)
@given(count=st.integers(1, 70), out_features=st.integers(1, 150), groups=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_shape_equals_float64(count, out_features, groups, seed):
    torch.manual_seed(seed)
    with use_face("triton"):
        weight, matrix = random_weight(out_features, 32 * groups, torch.float32)
        x = torch.randn(2 * count, 32 * groups)[::2]
        assert error_of(linear(x, weight), x.double() @ matrix.T) < 1e-5


def test_columns_in_parts_and_gates_equal_float64(face):
    torch.manual_seed(0)
    weight, matrix = random_weight(128, 2048, torch.float32, (117, 122), gated=True)
    x = torch.randn(5, 2048)
    gate, value = (x.double() @ matrix.T).chunk(2, dim=1)
    assert error_of(gated_linear(x, weight, activation="silu"), functional.silu(gate) * value) < 1e-5


def test_bits_of_an_entry_become_bfloat16_by_one_exact_product():
    """By torch, as Triton's interpreter multiplies bits: the numbers are those that the kernel makes."""
    code = torch.arange(16, dtype=torch.int32)
    entries = (((code & 7) << 6) | ((code & 8) << 12)).to(torch.int16).view(torch.bfloat16)
    for less in (0, 1, 100, 126):
        factor = torch.tensor(2.0 ** (126 - less)).bfloat16()
        assert torch.equal((entries * factor).double(), torch.tensor(NUMBERS).double() * 2.0**-less)


@pytest.mark.triton
@pytest.mark.parametrize("scales", [(0, 9), (236, 242), (90, 100), (127, 145)], ids=str)
def test_scales_beyond_half_precision_are_no_matter(scales):
    # In fp16 itself, entries of these scales would be zeros or infinities.
    torch.manual_seed(0)
    for served in ("reference", "triton"):
        with use_face(served):
            weight, matrix = random_weight(40, 160, torch.float16, scales)
            x = torch.randn(20, 160).half()
            expected = x.double() @ matrix.T
            result = linear(x, weight, out_dtype=torch.float32)
            kept = expected.abs() > 1e-37
            assert torch.allclose(
                result[kept].double(), expected[kept], rtol=1e-4, atol=1e-5 * float(matrix.abs().max())
            )


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """What the specification makes of floats (section 6.3), block by block in Python's own numbers."""
    magnitudes = sorted({abs(number) for number in NUMBERS})
    result = torch.zeros(rows.shape, dtype=torch.float64)
    for row, line in enumerate(rows.double().tolist()):
        for begin in range(0, len(line), 32):
            block = line[begin : begin + 32]
            peak = max(abs(value) for value in block)
            power = -127
            while peak and 2.0 ** (power + 3) <= peak:
                power += 1
            for place, value in enumerate(block):
                units = abs(value) / 2.0**power
                # Ties go to the even code: its last bit is the fraction.
                best = min(range(8), key=lambda code: (abs(magnitudes[code] - units), code % 2))
                result[row, begin + place] = magnitudes[best] * 2.0**power * (-1 if value < 0 else 1)
    return result


def test_floats_are_rounded_as_the_specification_says(face):
    torch.manual_seed(0)
    rows = torch.randn(9, 96) * torch.logspace(-6, 6, 9)[:, None]
    rows[2, :32] = torch.arange(-16, 16) / 4  # ties
    rows[3] = 0
    rows[4, 32:64] *= 1e-30
    weight = new_weight(9, 96, torch.float32)
    for start, end in ((4, 9), (0, 4)):
        fill(weight, rows[start:end], start)
    assert torch.equal(weight.rows(torch.arange(9)).double(), rounded(rows))
    assert 9 * 96 * 17 // 32 <= weight.nbytes <= 9 * 96 * 17 // 32 + 9
    rows[5, 40] = torch.inf
    fill(weight, rows)
    assert weight.rows(torch.tensor([5]))[0].isnan().tolist() == [32 <= column < 64 for column in range(96)]


def test_rows_of_gate_and_value_by_turns_are_taken_as_they_lie(face):
    # As gpt-oss stores them.
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (12, 2, 16), dtype=torch.uint8)
    scales = torch.randint(120, 130, (12, 2), dtype=torch.uint8)
    weight = new_weight(12, 64, torch.float32, gated=True)
    for half in (0, 1):
        fill_mxfp4(weight, blocks[half::2], scales[half::2], 6 * half)
    matrix = stood_for(blocks, scales)
    assert torch.equal(weight.rows(torch.arange(12)).double(), torch.cat([matrix[0::2], matrix[1::2]]))


def test_a_row_that_is_no_number_stays_alone(face):
    torch.manual_seed(0)
    weight, _ = random_weight(64, 256, torch.float32)
    x = torch.randn(4, 256)
    clean = linear(x, weight)
    x[1, 200] = torch.nan
    result = linear(x, weight)
    assert result[1].isnan().all() and torch.equal(result[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.triton
def test_a_row_does_not_depend_on_the_batch_where_asked_to():
    pytest.importorskip("triton")
    torch.manual_seed(0)
    with use_batch_invariance(True), use_face("triton"):
        weight, _ = random_weight(64, 1024, torch.float32)
        x = torch.randn(40, 1024)
        together = linear(x, weight)
        assert all(torch.equal(linear(x[i : i + 1], weight), together[i : i + 1]) for i in (0, 17, 39))


@pytest.mark.triton
def test_launches_are_compiled_ahead(monkeypatch):
    pytest.importorskip("triton")
    from vllm_kernels.triton import mxfp4
    from vllm_kernels.triton.kernel import recorded

    monkeypatch.setattr(mxfp4, "_LAYERS", ((64, 1024),))
    with use_face("triton"), recorded() as launches:
        weight, _ = random_weight(64, 1024, torch.float16)
        linear(torch.randn(3, 1024).half(), weight, residual=torch.randn(3, 64).half())
    assert [kernel.name for kernel, _ in launches] == ["mxfp4_product_kernel", "add_parts_kernel"]
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="in_features must be a multiple of 32, got 48"):
        new_weight(8, 48, torch.float32)
    with pytest.raises(ValueError, match="dtype must be floating point"):
        new_weight(8, 64, torch.int8)
    weight = new_weight(8, 64, torch.float32)
    blocks, scales = torch.zeros(8, 2, 16, dtype=torch.uint8), torch.zeros(8, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="weight must be one of MXFP4"):
        fill_mxfp4(new_plain_weight(8, 64, torch.float32), blocks, scales)
    with pytest.raises(ValueError, match=r"blocks must be torch.uint8"):
        fill_mxfp4(weight, blocks.int(), scales)
    with pytest.raises(ValueError, match=r"scales must be torch.uint8"):
        fill_mxfp4(weight, blocks, scales.float())
    with pytest.raises(ValueError, match=r"blocks must have shape \[any, 2, 16\]"):
        fill_mxfp4(weight, blocks.view(8, 1, 32), scales)
    with pytest.raises(ValueError, match=r"blocks must have shape \[any, 32\]"):
        fill_mxfp4(weight, blocks.view(16, 16), scales)
    with pytest.raises(ValueError, match=r"scales must have shape \[8, 2\]"):
        fill_mxfp4(weight, blocks.flatten(1), scales[:, :1])
    with pytest.raises(ValueError, match="outside of the weight's 8"):
        fill_mxfp4(weight, blocks, scales, 1)
