"""Triton's products of small integers beyond what the faces share: tall tiles, both orders of columns, prefetching."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from vllm_kernels.backend import use_face
from vllm_kernels.ops.linear import linear
from vllm_kernels.ops.quantization import fill_quantized, new_weight
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.reference.quantization import rounded_activations
from vllm_kernels.triton import quantized_product
from vllm_kernels.triton.device import FAMILIES, MULTIPROCESSORS
from vllm_kernels.triton.kernel import recorded
from vllm_kernels.triton.product_parts import MOST_PARTS, fold
from vllm_kernels.triton.quantized_product import Shape
from vllm_kernels.triton.quantized_sums import OF_128, two_columns, zero_and_scale
from vllm_kernels.triton.words import apart, from_words, to_words, with_zeros, words_of_row


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


@triton.jit
def widen_kernel(words, zeros, x, out):
    """The eight entries of each of 16 words, less the zero of each of 16 rows: ``[8, word, row]``."""
    zero, _ = zero_and_scale(zeros, tl.arange(0, 16), tl.arange(0, 16) < 16, x)
    word = tl.load(words.to(tl.pointer_type(tl.uint32)) + tl.arange(0, 16))[:, None]
    place = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    for number in tl.static_range(4):
        lower, upper = two_columns(word, zero[None, :], x, number)
        tl.store(out + number * 256 + place, lower.to(tl.float32))
        tl.store(out + (number + 4) * 256 + place, upper.to(tl.float32))


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_entry_less_every_zero_is_exact(dtype):
    nibbles = (torch.arange(16)[:, None] + 3 * torch.arange(8)) % 16  # [word, column]: each value in each column
    words = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
    zeros = with_zeros(torch.ones(16), torch.arange(16, dtype=torch.uint8))
    out = torch.full((8, 16, 16), torch.nan)
    widen_kernel[(1,)](words, zeros, torch.zeros(1, dtype=dtype), out)
    assert torch.equal(out, (nibbles.t()[:, :, None] - torch.arange(16)).float())


def test_every_bfloat16_entry_less_every_zero_is_exact():
    """The same by torch, as Triton's interpreter subtracts bits: the numbers are those that the kernel makes."""
    numbers = (torch.arange(16, dtype=torch.int16) | OF_128.value).view(torch.bfloat16)
    assert torch.equal(numbers[:, None] - numbers, torch.arange(16.0)[:, None] - torch.arange(16.0))


def with_every_zero(bits: int, group_size: int | None, activation_bits: int | None, in_features: int, dtype):
    """A weight of random entries, scales and zeros, and the matrix that it stands for."""
    weight = new_weight(70, in_features, dtype, bits=bits, group_size=group_size, activation_bits=activation_bits)
    q = torch.randint(0, 1 << bits, (70, in_features), dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (70, weight.groups), dtype=torch.uint8)
    scales = (torch.rand(70, weight.groups) + 0.1).half()
    fill_quantized(weight, q, scales, zeros)
    wide = [
        table.double().repeat_interleave(group_size or in_features, 1)[:, :in_features] for table in (zeros, scales)
    ]
    return weight, (q.double() - wide[0]) * wide[1]


@pytest.mark.triton
@pytest.mark.parametrize(
    "bits, group_size, in_features",
    [(4, 128, 640), (4, 64, 200), (4, 32, 192), (4, 24, 100), (4, None, 137), (8, 128, 256), (8, None, 99)],
)
def test_tiles_of_every_height_equal_float64(bits, group_size, in_features):
    torch.manual_seed(0)
    for rows, dtype in ((1, torch.float16), (20, torch.float32), (70, torch.float16)):
        weight, matrix = with_every_zero(bits, group_size, None, in_features, dtype)
        x = torch.randn(rows, in_features).to(dtype)
        exact = x.double() @ matrix.T
        result = linear(x, weight, out_dtype=torch.float32).double()
        # Zeros far from the middle make sums that nearly cancel: the error is measured by what is summed.
        assert ((result - exact).abs() <= 1e-6 * (x.double().abs() @ matrix.abs().T)).all()


@pytest.mark.triton
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bits, group_size, in_features", [(4, 128, 640), (4, 24, 100), (8, None, 1100)])
def test_tiles_of_every_height_equal_float64_by_bytes(bits, group_size, in_features, ordered, monkeypatch):
    monkeypatch.setattr(quantized_product, "takes_in_order", lambda *_: ordered)
    torch.manual_seed(0)
    for rows in (1, 20, 70):
        weight, matrix = with_every_zero(bits, group_size, 8, in_features, torch.float16)
        x = torch.randn(rows, in_features).half()
        x[:, :: weight.scheme.activation_group] = 8.0  # the greatest of a group
        x = (x * 127 / 8).round().mul(8 / 127).half()
        stood_for = rounded_activations(x, weight.scheme.activation_group).double()
        exact = stood_for @ matrix.T
        result = linear(x, weight, out_dtype=torch.float32).double()
        assert ((result - exact).abs() <= 1e-6 * (stood_for.abs() @ matrix.abs().T)).all()


@pytest.mark.parametrize("in_features", [128, 100, 137, 1])
def test_words_come_apart_as_they_were(in_features):
    torch.manual_seed(0)
    q = torch.randint(0, 16, (5, in_features), dtype=torch.uint8)
    words = to_words(q)
    assert words.shape == (5, 4 * words_of_row(in_features))
    assert torch.equal(from_words(words, in_features), q)


def test_a_word_has_even_columns_below_odd_ones():
    (word,) = to_words(torch.arange(8, dtype=torch.uint8)[None]).view(torch.int32)[0].tolist()
    assert [word >> shift & 15 for shift in range(0, 32, 4)] == [0, 2, 4, 6, 1, 3, 5, 7]


def test_scales_keep_their_zeros():
    torch.manual_seed(0)
    scales = torch.cat((torch.randn(1000).half().float(), torch.tensor([0.0, 65504.0, torch.inf, 2.0**-126])))
    zeros = torch.randint(0, 16, scales.shape, dtype=torch.uint8)
    kept, kept_zeros = apart(with_zeros(scales, zeros))
    assert torch.equal(kept, scales) and torch.equal(kept_zeros, zeros)
    wide = torch.randn(1000)
    assert ((apart(with_zeros(wide, zeros[:1000]))[0] - wide).abs() <= wide.abs() * 2.0**-20).all()
    assert apart(with_zeros(torch.tensor([torch.nan]), zeros[:1]))[0].isnan()


def test_columns_are_cut_until_enough_of_the_weight_is_under_way():
    scheme = Quantization(4, 128, None)
    for rows, out_features, in_features in ((17, 4096, 4096), (32, 4096, 14336)):
        for family in FAMILIES:
            shape = Shape.choose(rows, out_features, in_features, scheme, torch.bfloat16, family)
            programs = -(-out_features // shape.BLOCK_N) * shape.PARTS / MULTIPROCESSORS[family]
            prefetched = (shape.num_stages - 1) * shape.BLOCK_N * shape.BLOCK_K // 2
            assert programs * prefetched >= 48 * 1024


@pytest.mark.triton
def test_the_number_of_parts_compiles_nothing_anew():
    scheme = Quantization(8, None, 8)
    shapes = [Shape.choose(rows, 1024, 4096, scheme, torch.bfloat16, "sm_90") for rows in range(64, 2049, 64)]
    assert len({shape.PARTS for shape in shapes}) > 3
    assert all(shape.constants == shapes[0].constants and shape.warps == shapes[0].warps for shape in shapes)
    with recorded() as launches:
        for count in range(2, MOST_PARTS + 1):
            parts, out = torch.randn(count, 3, 1100), torch.empty(3, 1100)
            fold(parts, None, None, out)
            assert (out.double() - parts.double().sum(0)).abs().max() < 1e-5
    assert len({configuration.label for _, configuration in launches}) == 1


COUNT = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.triton.compilation import source_for
from vllm_kernels.triton.quantized_few_rows import quantized_few_rows
from vllm_kernels.triton.quantized_product import product, rounded_product

found = []
for kernel, group, rows in (
    (product, 128, 32), (product, 32, 32), (rounded_product, 128, 16),
    (quantized_few_rows, 128, 16), (quantized_few_rows, 32, 16),
):
    configuration = next(
        each for each in kernel.configurations("sm_90")
        if (each.constants.get("BITS", 4), each.constants["BLOCK_M"], each.constants["GROUP"]) == (4, rows, group)
    )
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    compiled = triton.compile(source_for(kernel, configuration, 90), target=GPUTarget("cuda", 90, 32), options=options)
    turn = compiled.asm["ttgir"].split("scf.for")[1]
    found.append([turn.count("async_copy_global_to_local"), turn.count("local_alloc")])
print(json.dumps(found))
"""


def test_activations_and_weights_are_prefetched(monkeypatch, tmp_path):
    """Entries of 4 bits, by activations as they are (and scales with zeros) and rounded: a turn's tiles are copied
    asynchronously; and what is made of the entries of few rows stays in registers.
    """
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [copies for copies, _ in found] == [3, 3, 2, 3, 3] and not any(stored for _, stored in found[2:]), found
