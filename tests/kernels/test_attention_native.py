"""Native attention: every level and AMX emulated, long contexts in parts, and the same bits however a prompt is cut."""

import dataclasses
import itertools
from functools import cache
from typing import get_args

import pytest
import torch

from tests.kernels.paged import Sequence, Step, random_sequence, step_of
from vllm_kernels.backend import use_face
from vllm_kernels.batch_invariance import use_batch_invariance
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.attention import paged_attention

EMULATED = ("attention",)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
EVERYTHING = {
    "sliding_window": 150,
    "soft_cap": 3.0,
    "alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]),
    "sinks": torch.tensor([1.0, -2.0, 0.5, 3.0]),
}


def attend(step: Step, **options) -> torch.Tensor:
    return paged_attention(step.query, step.cache, step.metadata, scale=step.query.shape[-1] ** -0.5, **options)


def exact(step: Step, **options) -> torch.Tensor:
    """The reference in float64."""
    with use_face("reference"):
        return attend(step.double(), **options)


@cache
def case(
    lengths: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    cached: CacheFormat | None = None,
    everything: bool = False,
    block_size: int = 16,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
) -> tuple[Step, dict, torch.Tensor]:
    """A step, its options and the exact result, which takes long and is the same for all levels."""
    torch.manual_seed(0)
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "dtype": dtype}
    step = step_of([random_sequence(*pair, **heads) for pair in lengths], block_size, format=cached)
    options = EVERYTHING if everything else {}
    return step, options, exact(step, **options)


def error(step: Step, options: dict, expected: torch.Tensor) -> float:
    """The largest difference to the exact result."""
    return (attend(step, **options).double() - expected).abs().max().item()


def cut(sequence: Sequence, start: int, end: int) -> Sequence:
    """The step that computes tokens ``start`` to ``end``."""
    return Sequence(sequence.query[start:end], sequence.key[:end], sequence.value[:end])


@pytest.mark.parametrize("cached", get_args(CacheFormat))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_format_at_every_level_equals_the_float64_reference(kernels, dtype, cached):
    # Few rows and many, both with keys at the edges of blocks.
    lengths = ((1, 70), (2, 19), (20, 131), (1, 1))
    assert error(*case(lengths, dtype, cached, everything=True, head_dim=64)) < TOLERANCE[dtype]


@pytest.mark.parametrize("head_dim", [1, 20, 32, 72, 80, 96, 128, 192, 256])
def test_any_width_of_heads_equals_the_reference(kernels, head_dim):
    for dtype, cached in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.bfloat16, "fp8_e4m3")):
        problem = case(((1, 33), (12, 30)), dtype, cached, block_size=5, head_dim=head_dim)
        assert error(*problem) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 13])
def test_any_number_of_query_heads_for_a_kv_head(kernels, group, dtype):
    assert error(*case(((1, 40), (8, 40)), dtype, num_heads=2 * group)) < TOLERANCE[dtype]


@pytest.mark.parametrize("cached", ["fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head"])
def test_every_stored_number_is_read_exactly(kernels, cached):
    # One key of zeros, so that its weight is one, and a value of all numbers that 8 bits can say.
    step = step_of([random_sequence(1, 1, head_dim=256, dtype=torch.bfloat16)], 1, format=cached)
    block, storage = step.metadata.block_table[0, 0], step.cache.value.dtype
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    numbers = codes.view(storage).float()
    usable = numbers.isfinite() & (numbers != -128)
    step.cache.key[block] = torch.zeros(256).to(storage)
    step.cache.value[block] = torch.where(usable, codes, 0).view(storage)
    if step.cache.value_scale is not None:
        step.cache.key_scale[block] = step.cache.value_scale[block] = 1.0
    expected = torch.where(usable, numbers, torch.zeros(())).bfloat16().expand(4, 256)
    assert torch.equal(attend(step)[0], expected)
    wide = dataclasses.replace(step, query=step.query.float())
    assert torch.equal(attend(wide)[0], expected.float())


@pytest.mark.parametrize("options", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("cached", ["bfloat16", "int8_per_token_head"])
def test_prompts_of_many_query_rows_equal_the_reference(kernels, cached, options):
    # Several items for a sequence on tiles, several splits, rows that fill no tile; with a window, also rows that see
    # nothing of a split which others of their item see.
    lengths = ((530, 530), (270, 1100), (9, 600), (23, 24))
    assert error(*case(lengths, torch.bfloat16, cached, everything=options)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("scale", [-0.3, 0.0, 8.0])
def test_any_scale_of_scores_equals_the_reference(kernels, scale):
    step, _, _ = case(((40, 90), (2, 70)), torch.bfloat16)
    with use_face("reference"):
        expected = paged_attention(step.double().query, step.cache, step.metadata, scale=scale)
    result = paged_attention(step.query, step.cache, step.metadata, scale=scale)
    assert (result.double() - expected).abs().max() < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_contexts_are_cut_into_parts_without_changing_bits(dtype, num_threads):
    torch.manual_seed(0)
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "dtype": dtype}
    lengths = [(1, 3000), (1, 513), (30, 1700), (1, 512)]
    sequences = [random_sequence(*pair, **heads) for pair in lengths]
    together = step_of(sequences, 16)
    expected = case(tuple(lengths), dtype, **{name: heads[name] for name in ("num_heads", "num_kv_heads", "head_dim")})
    assert error(*expected) < TOLERANCE[dtype]
    torch.set_num_threads(1)
    alone = torch.cat([attend(step_of([one], 16)) for one in sequences])
    torch.set_num_threads(num_threads)
    assert torch.equal(attend(together), alone)
    assert torch.equal(torch.cat([attend(step_of([one], 16)) for one in sequences]), alone)


@pytest.mark.parametrize("cached", ["float32", "bfloat16", "int8_per_token_head"])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_token_has_the_same_bits_however_its_prompt_is_cut(kernels, cached, options):
    torch.manual_seed(0)
    dtype = torch.float32 if cached == "float32" else torch.bfloat16
    whole = random_sequence(600, 600, head_dim=32, dtype=dtype)
    with use_batch_invariance(True):
        expected = attend(step_of([whole], 16, format=cached), **options)
        for borders in ([0, 37, 38, 39, 41, 530, 600], [0, 512, 599, 600], [0, 100, 101, 420, 600]):
            for start, end in itertools.pairwise(borders):
                part = attend(step_of([cut(whole, start, end)], 16, format=cached), **options)
                assert torch.equal(part, expected[start:end])


def test_queries_may_be_rows_of_a_larger_tensor(kernels):
    torch.manual_seed(0)
    for dtype in TOLERANCE:
        step = step_of([random_sequence(7, 30, dtype=dtype), random_sequence(1, 9, dtype=dtype)], 4)
        qkv = torch.full((8, 8, 16), torch.nan, dtype=dtype)
        qkv[:, :4] = step.query
        assert torch.equal(attend(dataclasses.replace(step, query=qkv[:, :4])), attend(step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 30])
def test_a_key_that_is_not_a_number_poisons_those_who_see_it_only(kernels, rows, dtype):
    torch.manual_seed(0)
    sequences = [random_sequence(rows, 60, dtype=dtype), random_sequence(rows, 60, dtype=dtype)]
    sequences[0].key[10] = torch.nan
    result = attend(step_of(sequences, 16))
    assert result[:rows].isnan().all()
    assert result[rows:].isfinite().all()
    assert attend(step_of(sequences, 16), sliding_window=20).isfinite().all()


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_a_followed_block_outside_of_the_cache_is_refused(wrong):
    step = step_of([random_sequence(1, 9), random_sequence(3, 30)], 4)
    step.metadata.block_table[1, 2] = wrong
    with pytest.raises(IndexError, match=r"block_table must name one of \d+ blocks in entry 2 of sequence 1"):
        attend(step)
    attend(step, sliding_window=10)  # what slid out of the window is never followed
    short = dataclasses.replace(step.metadata, block_table=step.metadata.block_table[:, :2].contiguous())
    with pytest.raises(IndexError, match="got none"):
        attend(dataclasses.replace(step, metadata=short))
