"""Graphs as on a GPU: padding changes nothing, no length of the host is kept, calls between pieces are new."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.kernels.fake_graphs import fake_graphs  # noqa: F401
from tests.kernels.paged import Step, poison, random_sequence, step_of
from vllm_kernels.backend import use_face
from vllm_kernels.graphs import GraphPool, NotCapturable, Pieces
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache, write_kv
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.norm import rms_norm
from vllm_kernels.ops.rotary import rope_and_cache
from vllm_kernels.triton.device import interpreted

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.usefixtures("fake_graphs", "_triton"),
    pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU: test_gpu_graphs.py has them on a GPU"),
]

CPU = torch.device("cpu")


@pytest.fixture
def _triton() -> Iterator[None]:
    with use_face("triton"), torch.inference_mode():
        yield


def padded(count: int, width: int, longest: int) -> AttentionMetadata:
    """What a captured decode step reads: ``count`` sequences of length 0, which may be as long as ``longest``."""
    return AttentionMetadata(
        query_start_loc=torch.arange(count + 1, dtype=torch.int32),
        seq_lens=torch.zeros(count, dtype=torch.int32),
        block_table=torch.zeros(count, width, dtype=torch.int32),
        query_lens_host=[1] * count,
        seq_lens_host=[longest] * count,
    )


def true_attention(step: Step, **options: object) -> torch.Tensor:
    with use_face("reference"):
        exact = step.double()
        return paged_attention(exact.query, exact.cache, exact.metadata, scale=0.3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("longest", "options"),
    [
        pytest.param(200, {}, id="one part"),
        pytest.param(600, {}, id="parts"),
        pytest.param(200, {"sliding_window": 20}, id="window"),
        pytest.param(600, {"soft_cap": 5.0, "sinks": torch.ones(4), "alibi_slopes": torch.ones(4) / 9}, id="the rest"),
    ],
)
def test_a_captured_step_serves_any_lengths_and_fewer_sequences(longest: int, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    cases = [[30, 7], [1, 70, 24], [33]]
    steps = [step_of([random_sequence(1, length) for length in lengths], 16) for lengths in cases]
    cache = allocate_kv_cache(max(step.cache.num_blocks for step in steps), 16, 2, 16, "float32", CPU)
    metadata, query = padded(4, 200, longest), torch.zeros(4, 4, 16)
    graph, result = GraphPool(CPU).capture(
        lambda: paged_attention(query, cache, metadata, scale=0.3, **options)  # type: ignore[arg-type]
    )
    for step in steps:
        count = len(step.query)
        poison(cache)
        for mine, other in ((cache.key, step.cache.key), (cache.value, step.cache.value)):
            mine[: len(other)] = other
        query[:count] = step.query
        query[count:] = torch.nan
        result.fill_(torch.nan)
        metadata.refill(step.metadata)
        graph.replay()
        torch.testing.assert_close(result[:count].double(), true_attention(step, **options), atol=2e-5, rtol=1e-4)
        assert not result[count:].any()  # which is zeros, and no NaN


def test_a_step_with_more_sequences_than_were_captured_is_refused() -> None:
    metadata = padded(2, 20, 100)
    with pytest.raises(ValueError, match="query lengths"):
        metadata.refill(step_of([random_sequence(1, 9) for _ in range(3)], 16).metadata)
    with use_face("cpu"), pytest.raises(ValueError, match="as many sequences"):
        paged_attention(torch.zeros(2, 4, 16), allocate_kv_cache(8, 16, 2, 16, "float32", CPU), metadata, scale=1.0)
        metadata.refill(step_of([random_sequence(1, 9)], 16).metadata)


@pytest.mark.parametrize("format", ["float32", "int8_per_token_head"])
def test_tokens_without_a_slot_leave_the_cache_alone(format: str) -> None:
    torch.manual_seed(0)
    table, slots = torch.randn(9, 16), torch.full((3,), -1)
    qkv, positions = torch.randn(3, 8 * 16), torch.zeros(3, dtype=torch.int64)
    found: list[KVCache] = []
    for captured in (True, False):
        cache = allocate_kv_cache(4, 4, 2, 16, format, CPU)  # type: ignore[arg-type]
        poison(cache)
        if captured:
            before = qkv.clone()
            graph, query = GraphPool(CPU).capture(lambda c=cache: rope_and_cache(qkv, 4, positions, table, c, slots))
            qkv.copy_(before)
            slots[:2], positions[:2] = torch.tensor([5, 2]), torch.tensor([8, 3])
            graph.replay()
            got = query[:2].clone()
            qkv.copy_(before)
        else:
            true = rope_and_cache(qkv[:2].clone(), 4, positions[:2], table, cache, slots[:2])
            assert torch.equal(got, true)
        found.append(cache)
    for name in ("key", "value", "key_scale", "value_scale"):
        one, other = (getattr(cache, name) for cache in found)
        if one is not None:
            assert torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
            assert torch.equal(torch.isnan(one), torch.isnan(other))


def test_an_embedding_of_padding_is_that_of_token_zero() -> None:
    ids, table = torch.zeros(3, dtype=torch.int64), torch.randn(5, 8)
    graph, result = GraphPool(CPU).capture(lambda: embedding(ids, table))
    ids[0] = 4
    graph.replay()
    assert torch.equal(result, table[[4, 0, 0]])


def test_calls_between_pieces_see_the_step_as_it_is() -> None:
    torch.manual_seed(0)
    x, weight = torch.zeros(5, 8), torch.randn(8)
    step = {"factor": torch.zeros(0), "count": 0}

    def scaled(source: torch.Tensor, target: torch.Tensor) -> None:
        count = int(step["count"])
        torch.mul(source[:count], step["factor"][:count, None], out=target[:count])  # type: ignore[index]

    def function(pieces: Pieces) -> torch.Tensor:
        out = x
        for _ in range(2):
            normed = rms_norm(out, weight, 1e-5)
            target = torch.zeros_like(normed)
            pieces.between(scaled, normed, target)
            out = rms_norm(target, weight, 1e-5)
        return out

    pool = GraphPool(CPU)
    graph, result = pool.capture_pieces(function, num_warmups=2)
    assert pool.memory_in_use() == 3 * 2**20
    for count in (5, 2, 4):
        step.update(factor=torch.randn(count), count=count)
        x[:count] = torch.randn(count, 8)
        graph.replay()
        assert torch.equal(result[:count], function(Pieces())[:count])


def test_what_waits_for_the_device_is_not_captured_and_the_next_capture_is() -> None:
    x, pool = torch.randn(2, 8), GraphPool(CPU)
    with pytest.raises(NotCapturable, match="not permitted"):
        pool.capture(lambda: rms_norm(x, x[0], float(x[0, 0].abs())))
    graph, result = pool.capture(lambda: rms_norm(x, x[0], 1e-5))
    graph.replay()
    assert torch.equal(result, rms_norm(x, x[0], 1e-5))
    with use_face("eager"), pytest.raises(NotCapturable, match="eager face"):
        pool.capture(lambda: rms_norm(x, x[0], 1e-5))


def test_attention_of_no_sequences_is_nothing() -> None:
    cache, metadata = allocate_kv_cache(4, 4, 2, 16, "float32", CPU), padded(0, 3, 0)
    for face in ("triton", "eager", "reference", "cpu"):
        with use_face(face):
            assert paged_attention(torch.zeros(0, 4, 16), cache, replace(metadata), scale=1.0).shape == (0, 4, 16)


@pytest.mark.parametrize("face", ["reference", "eager", "cpu", "triton"])
def test_attention_writes_where_it_is_told(face: str) -> None:
    torch.manual_seed(0)
    step = step_of([random_sequence(1, 9), random_sequence(6, 8)], 4)
    out = torch.full_like(step.query, torch.nan)
    with use_face(face):
        given = paged_attention(step.query, step.cache, step.metadata, scale=0.3, out=out)
        assert given.data_ptr() == out.data_ptr()
        for wrong, word in ((out[:3], "shape"), (out.double(), "float32"), (out.mT.contiguous().mT, "contiguous")):
            with pytest.raises(ValueError, match=f"out must.*{word}"):
                paged_attention(step.query, step.cache, step.metadata, scale=0.3, out=wrong)
    torch.testing.assert_close(out.double(), true_attention(step), atol=2e-5, rtol=1e-4)


def test_a_slot_that_is_not_there_is_written_by_nobody() -> None:
    cache = allocate_kv_cache(2, 4, 2, 16, "float32", CPU)
    poison(cache)
    write_kv(torch.zeros(1, 2, 16), torch.zeros(1, 2, 16), cache, torch.tensor([-1]))
    assert cache.key.isnan().all()
    assert cache.value.isnan().all()
