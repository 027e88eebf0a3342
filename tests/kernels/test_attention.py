import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.kernels.paged import Sequence, Step, random_sequence, spread, step_of
from vllm_kernels.backend import FACES, use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.attention import paged_attention
from vllm_kernels.ops.cache import allocate_kv_cache

# New and all tokens: decode, whole prompts, chunks of prompts, lengths at and around block and tile borders.
LENGTHS = [(1, 1), (5, 5), (1, 37), (1, 16), (16, 16), (7, 33), (300, 310), (1, 17), (2, 2)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def attend(step: Step, **options) -> torch.Tensor:
    options.setdefault("scale", step.query.shape[-1] ** -0.5)
    return paged_attention(step.query, step.cache, step.metadata, **options)


def oracle(step: Step, **options) -> torch.Tensor:
    with use_face("reference"):
        return attend(step.double(), **options)


def features(num_heads: int) -> dict[str, dict]:
    """One entry per kind of attention, and all of them at once."""
    torch.manual_seed(1)
    slopes, sinks = torch.rand(num_heads), torch.randn(num_heads)
    return {
        "plain": {},
        "window": {"sliding_window": 6},
        "wide window": {"sliding_window": 290},
        "soft cap": {"soft_cap": 2.0},
        "alibi": {"alibi_slopes": slopes},
        "sinks": {"sinks": sinks},
        "all": {"sliding_window": 20, "soft_cap": 3.0, "alibi_slopes": slopes, "sinks": sinks},
    }


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", features(4))
def test_every_kind_of_attention_equals_the_float64_reference(kind, dtype):
    torch.manual_seed(0)
    options = features(4)[kind]
    step = step_of([random_sequence(*lengths, dtype=dtype) for lengths in LENGTHS], block_size=16)
    error = (attend(step, **options).double() - oracle(step, **options)).abs().max()
    assert error < TOLERANCE[dtype]


def test_vectors_and_tables_may_be_columns_of_wider_tensors(face):
    torch.manual_seed(0)
    options = features(4)["all"]
    step = step_of([random_sequence(*lengths) for lengths in [(1, 37), (7, 33)]], block_size=16)
    expected = oracle(step, **options)
    for name in ("query_start_loc", "seq_lens", "block_table"):
        setattr(step.metadata, name, spread(getattr(step.metadata, name)))
    vectors = {name: spread(options[name]) for name in ("alibi_slopes", "sinks")}
    assert (attend(step, **{**options, **vectors}).double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("cached", get_args(CacheFormat))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_cache_of_any_format_equals_the_float64_reference_of_what_it_holds(face, dtype, cached, num_kv_heads):
    torch.manual_seed(0)
    sequences = [random_sequence(*lengths, num_kv_heads=num_kv_heads, dtype=dtype) for lengths in [(1, 37), (7, 33)]]
    step = step_of(sequences, block_size=16, format=cached)
    with use_face(face):
        result = attend(step)
    assert result.dtype == dtype
    # A query with fewer digits than the cache reads the keys with as few.
    assert (result.double() - oracle(step)).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_scale_of_all_keys_and_one_of_all_values(face, dtype, kind):
    torch.manual_seed(0)
    options = features(4)[kind]
    sequences = [random_sequence(*lengths, dtype=dtype) for lengths in [(1, 37), (7, 33)]]
    step = step_of(sequences, block_size=16, format="fp8_e4m3", k_scale=0.03, v_scale=0.005)  # some values saturate
    # What is stored, in a cache without scales.
    plain = allocate_kv_cache(step.cache.num_blocks, 16, 2, 16, "float32")
    exact = Step(step.query.double(), plain, step.metadata)
    exact.cache.key.copy_(step.cache.key.float() * 0.03)
    exact.cache.value.copy_(step.cache.value.float() * 0.005)
    result = attend(step, **options)
    assert result.dtype == dtype
    assert (result.double() - oracle(exact, **options)).abs().max() < TOLERANCE[dtype]
    out = torch.full_like(step.query, torch.nan)
    assert attend(step, out=out, **options) is out and torch.equal(out, result)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (8, 1), (6, 2)])
@pytest.mark.parametrize("block_size", [1, 3, 32])
def test_any_grouping_of_heads_and_any_block_size_equals_the_reference(num_heads, num_kv_heads, block_size, dtype):
    torch.manual_seed(0)
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": 8, "dtype": dtype}
    step = step_of([random_sequence(*lengths, **heads) for lengths in [(1, 9), (4, 4), (3, 11), (1, 1)]], block_size)
    assert (attend(step).double() - oracle(step)).abs().max() < TOLERANCE[dtype]


def test_the_reference_equals_textbook_attention():
    torch.manual_seed(0)
    sequence = random_sequence(11, 11)
    step = step_of([sequence], block_size=4)
    query, key, value = (part.double().transpose(0, 1)[None] for part in (sequence.query, sequence.key, sequence.value))
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(oracle(step), expected[0].transpose(0, 1), atol=1e-12)


@pytest.mark.parametrize("kind", features(4))
@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(16, torch.float32), (20, torch.float32), (16, torch.bfloat16)], ids=str
)
def test_a_sequence_has_the_same_bits_alone_and_in_any_batch(kind, head_dim, dtype, num_threads):
    torch.manual_seed(0)
    options = features(4)[kind]
    lengths = [(1, 100), (1, 101), (1, 97), (9, 40), (1, 250), (1, 100), (1, 112), (40, 40), *[(1, 103)] * 20]
    sequences = [random_sequence(*pair, head_dim=head_dim, dtype=dtype) for pair in lengths]
    alone = [attend(step_of([sequence], block_size=8), **options) for sequence in sequences]
    for order in (list(range(len(sequences))), torch.randperm(len(sequences)).tolist()):
        together = attend(step_of([sequences[i] for i in order], block_size=8), **options)
        expected = torch.cat([alone[i] for i in order])
        assert torch.equal(together, expected)


def test_decode_of_many_long_sequences_is_split_without_changing_bits(num_threads):
    # Wide heads, so that the sequences do not fit one chunk together.
    torch.manual_seed(0)
    wide = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 128}
    sequences = [random_sequence(1, 600, **wide) for _ in range(6)]
    together = attend(step_of(sequences, block_size=16))
    assert torch.equal(together, torch.cat([attend(step_of([one], block_size=16)) for one in sequences]))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5),
    block_size=st.integers(1, 20),
    window=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**16),
)
def test_random_batches_equal_the_reference(lengths, block_size, window, seed):
    torch.manual_seed(seed)
    step = step_of([random_sequence(new, new + old, head_dim=8) for new, old in lengths], block_size)
    result = attend(step, sliding_window=window)
    assert (result.double() - oracle(step, sliding_window=window)).abs().max() < 1e-5


@pytest.mark.parametrize(("query_len", "seq_len"), [(1, 50), (6, 50), (1, 51)])
def test_tokens_that_slid_out_of_the_window_are_never_read(query_len, seq_len):
    # Blocks before the window are gone: their table entries point at block 0, and block 0 holds NaN.
    torch.manual_seed(0)
    window, block_size = 10, 4
    sequence = random_sequence(query_len, seq_len)
    first_seen = seq_len - query_len - window + 1
    kept = step_of([sequence], block_size)
    slid = step_of([sequence], block_size, first_kept=[first_seen])
    assert (slid.metadata.block_table[0, : first_seen // block_size] == 0).all()
    result = attend(slid, sliding_window=window)
    assert torch.equal(result, attend(kept, sliding_window=window))
    with use_face("reference"):
        assert torch.allclose(attend(slid, sliding_window=window), result, atol=1e-5)


def test_chunked_prefill_gives_what_the_whole_prompt_gives():
    torch.manual_seed(0)
    whole = random_sequence(70, 70)
    expected = attend(step_of([whole], block_size=16))
    chunks = []
    for start, end in ((0, 31), (31, 32), (32, 70)):
        chunk = Sequence(whole.query[start:end], whole.key[:end], whole.value[:end])
        chunks.append(attend(step_of([chunk], block_size=16)))
    assert torch.allclose(torch.cat(chunks), expected, atol=1e-6)


def test_metadata_is_reused_across_layers_with_different_windows():
    torch.manual_seed(0)
    step = step_of([random_sequence(1, 30), random_sequence(8, 20)], block_size=4)
    for window in (None, 5, None, 3):
        result = attend(step, sliding_window=window).double()
        assert (result - oracle(step, sliding_window=window)).abs().max() < 1e-5


def test_an_empty_step_gives_an_empty_result():
    step = step_of([random_sequence(1, 3)], block_size=4)
    metadata = dataclasses.replace(
        step.metadata,
        query_start_loc=torch.zeros(1, dtype=torch.int32),
        seq_lens=torch.zeros(0, dtype=torch.int32),
        block_table=torch.zeros(0, 0, dtype=torch.int32),
        query_lens_host=[],
        seq_lens_host=[],
    )
    empty = dataclasses.replace(step, query=step.query[:0], metadata=metadata)
    assert attend(empty).shape == (0, 4, 16)


def test_wrong_arguments_are_named():
    step = step_of([random_sequence(2, 3)], block_size=4)
    with pytest.raises(ValueError, match="query must have shape"):
        attend(dataclasses.replace(step, query=step.query[..., :8]))
    with pytest.raises(ValueError, match=r"query must be floating point, got torch.int64"):
        attend(dataclasses.replace(step, query=step.query.long()))
    with pytest.raises(ValueError, match="query must have a multiple of num_kv_heads=2 heads"):
        attend(dataclasses.replace(step, query=step.query[:, :3]))
    with pytest.raises(ValueError, match="metadata is of 2 tokens, but query has 1"):
        attend(dataclasses.replace(step, query=step.query[:1]))
    with pytest.raises(ValueError, match="sinks must have shape"):
        attend(step, sinks=torch.zeros(3))
    with pytest.raises(ValueError, match="alibi_slopes must have shape"):
        attend(step, alibi_slopes=torch.zeros(5))
    with pytest.raises(ValueError, match="sliding_window must be at least 1"):
        attend(step, sliding_window=0)
    with pytest.raises(ValueError, match="metadata has 2 new tokens in a sequence of 1"):
        attend(dataclasses.replace(step, metadata=dataclasses.replace(step.metadata, seq_lens_host=[1])))
    with pytest.raises(ValueError, match="metadata is of 1 sequences"):
        attend(dataclasses.replace(step, metadata=dataclasses.replace(step.metadata, query_lens_host=[1, 1])))
