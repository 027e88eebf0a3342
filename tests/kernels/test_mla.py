import dataclasses
import itertools
import mmap
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.paged import spread
from vllm_kernels.backend import FACES, use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.mla import LatentCache, allocate_latent_cache, latent_attention, write_latent
from vllm_kernels.triton.device import interpreted

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
FORMATS: dict[torch.dtype, CacheFormat] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
# New and all tokens: single tokens, a few as of speculative decoding, whole prompts and chunks of them.
LENGTHS = [(1, 1), (5, 5), (1, 37), (4, 16), (7, 33), (20, 70), (2, 2)]


@dataclass
class Step:
    query_latent: torch.Tensor
    query_rope: torch.Tensor
    cache: LatentCache
    metadata: AttentionMetadata

    def attend(self, scale: float = 0.2) -> torch.Tensor:
        return latent_attention(self.query_latent, self.query_rope, self.cache, self.metadata, scale=scale)


def metadata_of(lengths: list[tuple[int, int]], block_table: torch.Tensor) -> AttentionMetadata:
    query_lens, seq_lens = ([pair[i] for pair in lengths] for i in (0, 1))
    return AttentionMetadata(
        query_start_loc=torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=block_table,
        query_lens_host=query_lens,
        seq_lens_host=seq_lens,
    )


def random_step(
    lengths: list[tuple[int, int]],
    *,
    num_heads: int = 3,
    rank: int = 32,
    rope: int = 8,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    format: CacheFormat | None = None,
) -> Step:
    """Blocks in random order; every slot that no sequence owns reads as NaN."""
    blocks_of = [-(-seq_len // block_size) for _, seq_len in lengths]
    cache = allocate_latent_cache(sum(blocks_of) + 2, block_size, rank, rope, format or FORMATS[dtype])
    cache.entries.view(torch.uint8).fill_(0x7F if cache.entries.dtype.itemsize == 1 else 0xFF)
    free = torch.randperm(cache.num_blocks).tolist()
    table = torch.zeros(len(lengths), max(blocks_of) + 1, dtype=torch.int32)
    for row, (count, (_, seq_len)) in enumerate(zip(blocks_of, lengths, strict=True)):
        blocks = torch.tensor([free.pop() for _ in range(count)])
        table[row, :count] = blocks.int()
        position = torch.arange(seq_len)
        latent, key = torch.randn(seq_len, rank).to(dtype), torch.randn(seq_len, rope).to(dtype)
        with use_face("reference"):
            write_latent(latent, key, cache, blocks[position // block_size] * block_size + position % block_size)
    num_tokens = sum(query_len for query_len, _ in lengths)
    # As a layer has them: heads before tokens, and a part of a wider row.
    query_latent = torch.randn(num_heads, num_tokens, rank).to(dtype).transpose(0, 1)
    query_rope = torch.randn(num_tokens, num_heads, 5 + rope).to(dtype)[..., 5:]
    return Step(query_latent, query_rope, cache, metadata_of(lengths, table))


def oracle(step: Step, scale: float = 0.2) -> torch.Tensor:
    """float64, token by token, head by head, from what the cache holds."""
    metadata, rows = step.metadata, step.cache.entries.double().flatten(0, 1)
    found, token = [], 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        for position in range(seq_len - query_len, seq_len):
            table, size = metadata.block_table[seq].tolist(), step.cache.block_size
            entries = torch.stack([rows[table[at // size] * size + at % size] for at in range(position + 1)])
            query = torch.cat([step.query_latent[token], step.query_rope[token]], dim=-1).double()
            found.append(torch.softmax(scale * query @ entries.T, dim=-1) @ entries[:, : step.cache.lora_rank])
            token += 1
    return torch.stack(found)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("face", FACES)
def test_latent_attention_equals_float64(face, dtype):
    torch.manual_seed(0)
    step = random_step(LENGTHS, dtype=dtype)
    with use_face(face):
        result = step.attend()
    assert result.dtype == dtype and result.shape == step.query_latent.shape
    assert (result.double() - oracle(step)).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("scale", [0.0, -0.3])
@pytest.mark.parametrize("face", FACES)
def test_any_scale_of_scores_equals_float64(face, scale):
    torch.manual_seed(0)
    step = random_step([(1, 40), (9, 20)], dtype=torch.float32)
    with use_face(face):
        result = step.attend(scale)
    assert (result.double() - oracle(step, scale)).abs().max() < 2 * TOLERANCE[torch.float32]


@pytest.mark.triton
@pytest.mark.parametrize("format", ["float16", "fp8_e4m3"])
def test_the_sizes_of_deepseek_equal_float64(format):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    step = random_step([(1, 40), (3, 20)], num_heads=16, rank=512, rope=64, dtype=torch.float16, format=format)
    with use_face("triton"):
        assert (step.attend(0.07).double() - oracle(step, 0.07)).abs().max() < 3e-3


@pytest.mark.parametrize("face", FACES)
def test_tables_may_be_columns_of_wider_tensors(face):
    torch.manual_seed(0)
    step = random_step([(1, 37), (7, 33)])
    expected = oracle(step)
    for name in ("query_start_loc", "seq_lens", "block_table"):
        setattr(step.metadata, name, spread(getattr(step.metadata, name)))
    with use_face(face):
        assert (step.attend().double() - expected).abs().max() < 1e-5


@pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU")
def test_heads_that_lie_more_than_two_to_the_31_entries_apart_are_found():
    """As 128 heads of 33,000 tokens do, heads before tokens. Of the memory, only the pages that are used exist."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    step = random_step([(1, 20)], dtype=torch.float16)
    stride, no_reserve = 2**30 + 16, 0x4000
    # Room on both sides: an offset that wraps around finds zeros and not the end of the memory.
    room = mmap.mmap(-1, 2 * (4 * stride + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    far_apart = torch.frombuffer(room, dtype=torch.float16).as_strided((1, 3, 32), (32, stride, 1), 2 * stride)
    step.query_latent = far_apart.copy_(step.query_latent)
    with use_face("triton"):
        assert (step.attend().double() - oracle(step)).abs().max() < 3e-3


@pytest.mark.parametrize("format", ["fp8_e4m3", "fp8_e5m2", "float16"])
@pytest.mark.parametrize("face", FACES)
def test_a_cache_of_another_format_equals_float64_of_what_it_holds(face, format):
    torch.manual_seed(0)
    step = random_step([(1, 37), (7, 33)], format=format)
    with use_face(face):
        assert (step.attend().double() - oracle(step)).abs().max() < 1e-5


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 40)).map(lambda pair: (pair[0], max(1, sum(pair)))),
        min_size=1,
        max_size=4,
    ).filter(lambda lengths: sum(query_len for query_len, _ in lengths)),
    num_heads=st.sampled_from([1, 5, 16, 40]),
    sizes=st.sampled_from([(16, 16), (24, 4), (48, 20)]),
    block_size=st.sampled_from([1, 3, 16]),
)
@pytest.mark.parametrize("face", ["eager", "triton"])
def test_any_shape_equals_float64(face, lengths, num_heads, sizes, block_size):
    torch.manual_seed(0)
    step = random_step(lengths, num_heads=num_heads, rank=sizes[0], rope=sizes[1], block_size=block_size)
    with use_face(face):
        assert (step.attend().double() - oracle(step)).abs().max() < 1e-5


@pytest.mark.parametrize("format", [*FORMATS.values(), "fp8_e4m3", "fp8_e5m2"])
def test_every_face_stores_the_bits_of_the_reference(face, format):
    torch.manual_seed(0)
    # Parts of one wider row, as the projection gives them.
    projected = 20 * torch.randn(5, 24 + 8)
    latent, key = projected.split([24, 8], dim=1)
    caches = []
    for served in ("reference", face):
        caches.append(allocate_latent_cache(3, 4, 24, 8, format))
        with use_face(served):
            write_latent(latent, key, caches[-1], torch.tensor([1, -1, 11, 4, 0]))
    ours, theirs = (cache.entries.view(torch.uint8) for cache in caches)
    assert ours.any() and torch.equal(ours, theirs)


def test_attention_of_deepseek_v3_equals_that_of_transformers(face):
    """A prompt, then token by token, through the latent cache; theirs makes all keys and values."""
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    torch.manual_seed(0)
    config = modeling.DeepseekV3Config(
        hidden_size=48, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=32,
        qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=16, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    layer = modeling.DeepseekV3Attention(config, 0).eval()
    hidden = torch.randn(1, 11, 48)
    cos_sin = modeling.DeepseekV3RotaryEmbedding(config)(hidden, torch.arange(11)[None])
    mask = torch.full((11, 11), -torch.inf).triu(1)[None, None]
    with torch.inference_mode():
        expected = layer(hidden, cos_sin, mask)[0][0]
        query = layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(hidden))).view(1, 11, 4, 20).transpose(1, 2)
        latent, key = layer.kv_a_proj_with_mqa(hidden).split([32, 8], dim=-1)
        query_rope, key = modeling.apply_rotary_pos_emb_interleave(query[..., 12:], key[:, None], *cos_sin)
        up = layer.kv_b_proj.weight.view(4, 12 + 16, 32)
        query_latent = (query[0, ..., :12] @ up[:, :12]).transpose(0, 1)  # [11, 4, 32]
        query_rope = query_rope[0].transpose(0, 1)
        cache = allocate_latent_cache(4, 4, 32, 8, "float32")
        blocks = torch.tensor([2, 0, 3])
        slots = blocks.repeat_interleave(4) * 4 + torch.arange(12) % 4
        found = []
        for first, last in ((0, 6), *((at, at + 1) for at in range(6, 11))):
            new = slice(first, last)
            write_latent(layer.kv_a_layernorm(latent)[0, new], key[0, 0, new], cache, slots[new])
            metadata = metadata_of([(last - first, last)], blocks[None].int())
            attended = latent_attention(
                query_latent[new], query_rope[new], cache, metadata, scale=layer.scaling
            )  # [n, 4, 32]
            values = (attended.transpose(0, 1) @ up[:, 12:].transpose(1, 2)).transpose(0, 1)
            found.append(layer.o_proj(values.flatten(1)))
    assert torch.allclose(torch.cat(found), expected, atol=1e-6, rtol=1e-5)


def test_blocks_outside_of_the_cache_are_refused(refusing_face):
    step = random_step([(1, 40)])
    step.metadata.block_table[0, 1] = step.cache.num_blocks
    with pytest.raises(IndexError):
        step.attend()
    with pytest.raises(IndexError):
        write_latent(torch.ones(1, 32), torch.ones(1, 8), step.cache, torch.tensor([10_000]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="rope_dim must be at least 1, got 0"):
        allocate_latent_cache(1, 1, 8, 0, "float32")
    with pytest.raises(ValueError, match=r"format of a latent cache must be one of .*got 'int8_per_token_head'"):
        allocate_latent_cache(1, 1, 8, 8, "int8_per_token_head")
    with pytest.raises(ValueError, match="entries of a cache must be contiguous"):
        LatentCache(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="lora_rank must be between 0 and 8, got 8"):
        LatentCache(torch.zeros(2, 3, 8), 8)
    with pytest.raises(ValueError, match=r"no format of a latent cache stores torch.int8"):
        LatentCache(torch.zeros(2, 3, 8, dtype=torch.int8), 4)
    step = random_step([(1, 3)])
    with pytest.raises(ValueError, match=r"query_rope must have shape \[1, 3, 8\]"):
        dataclasses.replace(step, query_rope=step.query_rope[..., :7]).attend()
    with pytest.raises(ValueError, match=r"query_rope must be torch.float32"):
        dataclasses.replace(step, query_rope=step.query_rope.double()).attend()
    with pytest.raises(ValueError, match="but query_latent has 2"):
        dataclasses.replace(
            step, query_latent=step.query_latent.repeat(2, 1, 1), query_rope=step.query_rope.repeat(2, 1, 1)
        ).attend()
    with pytest.raises(ValueError, match=r"key_rope must be torch.float32"):
        write_latent(torch.ones(1, 32), torch.ones(1, 8).double(), step.cache, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"slot_mapping must be torch.int64"):
        write_latent(torch.ones(1, 32), torch.ones(1, 8), step.cache, torch.tensor([0], dtype=torch.int32))


@pytest.mark.parametrize("face", FACES)
def test_more_new_tokens_than_tokens_are_refused(face):
    step = random_step([(3, 3)])
    step.metadata.seq_lens_host[0] = 2
    if face != "reference":
        with use_face(face), pytest.raises(ValueError, match="3 new tokens in a sequence of 2"):
            step.attend()


@pytest.mark.triton
def test_latents_cut_into_parts_equal_float64_and_launches_are_compiled_ahead(monkeypatch):
    pytest.importorskip("triton")
    from vllm_kernels.triton import attention_plan
    from vllm_kernels.triton.kernel import recorded

    torch.manual_seed(0)
    monkeypatch.setattr(attention_plan, "SPLIT_TOKENS", 16)
    sizes = {"num_heads": 16, "rank": 512, "rope": 64, "block_size": 16, "dtype": torch.float16}
    step = random_step([(1, 150), (1, 1), (2, 33), (6, 9)], **sizes)
    with use_face("triton"), recorded() as launches:
        result = step.attend(0.04)
        write_latent(torch.ones(2, 512).half(), torch.ones(2, 64).half(), step.cache, torch.tensor([70_000, -1]))
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)
    (plan,) = step.metadata.plans.values()
    assert plan.launches[-1].part_tokens == 4  # none for the prompt
    assert {kernel.name for kernel, _ in launches} == {
        "latent_attention_kernel",
        "merge_kernel",
        "write_latent_kernel",
    }
    exact = dataclasses.replace(step, query_latent=step.query_latent.double(), query_rope=step.query_rope.double())
    with use_face("eager"):
        assert (result.double() - exact.attend(0.04)).abs().max() < 3e-3


def test_a_sequence_has_the_same_bits_in_any_batch_where_asked_to(face):
    from vllm_kernels.batch_invariance import use_batch_invariance

    if face == "reference":
        pytest.skip("it has no batches")
    torch.manual_seed(0)
    step = random_step([(1, 300), (1, 20), (9, 30)])
    with use_batch_invariance(True):
        together = step.attend()
        for seq, (first, last) in enumerate(((0, 1), (1, 2), (2, 11))):
            lengths = [(last - first, step.metadata.seq_lens_host[seq])]
            alone = dataclasses.replace(
                step,
                query_latent=step.query_latent[first:last],
                query_rope=step.query_rope[first:last],
                metadata=metadata_of(lengths, step.metadata.block_table[seq : seq + 1]),
            )
            assert torch.equal(alone.attend(), together[first:last])
