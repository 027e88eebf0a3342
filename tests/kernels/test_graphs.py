"""Kernel graphs: what is captured, what is refused, and that replays read what is new in their inputs."""

import gc
from collections.abc import Callable

import pytest
import torch

from tests.kernels.paged import random_sequence, step_of
from vllm_kernels.cpu.scratch import Scratch
from vllm_kernels.graphs import GraphPool, NotCapturable
from vllm_kernels.ops.attention import paged_attention
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight
from vllm_kernels.ops.norm import fused_add_rms_norm, rms_norm

SIZE = 96

pytestmark = pytest.mark.skipif(not GraphPool(torch.device("cpu")).available, reason="there are no native kernels")


def block(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Norms and products as in a layer."""
    gate_up, down = new_weight(2 * SIZE, SIZE, dtype, gated=True), new_weight(SIZE, SIZE, dtype)
    for weight in (gate_up, down):
        fill(weight, torch.randn(weight.out_features, weight.in_features) / 8)
    scale = torch.randn(SIZE).to(dtype)
    bias = torch.randn(SIZE).to(dtype)

    def layer(x: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(x, scale, 1e-5)
        brought = linear(gated_linear(normed, gate_up, "silu"), down, bias, residual=x)
        out, total = fused_add_rms_norm(brought, x, scale, 1e-6, unit_offset=True)
        return linear(out.view(-1, SIZE), down, residual=total)

    return lambda x: layer(layer(layer(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 7, 40])
@torch.inference_mode()
def test_a_replay_computes_anew(level: str, num_threads: int, dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(count)
    function, x = block(dtype), torch.randn(count, SIZE).to(dtype)
    graph, result = GraphPool(x.device).capture(lambda: function(x))
    assert torch.equal(result, function(x))
    for _ in range(3):
        x.copy_(torch.randn(count, SIZE))
        graph.replay()
        assert torch.equal(result, function(x))


@torch.inference_mode()
def test_graphs_of_one_pool_may_be_replayed_in_any_order() -> None:
    torch.manual_seed(0)
    function, pool = block(torch.float32), GraphPool(torch.device("cpu"))
    inputs = [torch.randn(count, SIZE) for count in (40, 3, 40)]
    truths = [function(x) for x in inputs]
    captured = [pool.capture(lambda x=x: function(x)) for x in inputs]
    for _ in range(2):
        for (graph, result), truth in reversed(list(zip(captured, truths, strict=True))):
            graph.replay()
            assert torch.equal(result, truth)


def test_scratch_memory_is_used_again_when_no_view_of_it_is_left() -> None:
    scratch = Scratch()
    first = scratch.empty((4, 100), torch.float32)
    view, address = first.flatten()[7:], first.data_ptr()
    assert first.shape == (4, 100)
    assert address % 64 == 0
    del first
    gc.collect()
    other = scratch.empty((4, 100), torch.bfloat16)
    assert other.dtype == torch.bfloat16
    assert other.data_ptr() != address
    del view, other
    again = scratch.empty((399,), torch.float32)
    assert scratch.nbytes == 2 * 4096
    big = scratch.empty((5000,), torch.uint8)
    assert scratch.nbytes == 2 * 4096 + 8192
    assert scratch.empty((0, 3), torch.float32).shape == (0, 3)
    assert again.shape == (399,)
    assert big.shape == (5000,)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: rms_norm(x + 1, x[0], 1e-5),
        lambda x: rms_norm(x, x[0].clone(), 1e-5),
        lambda x: rms_norm(x, x[0], float(x[0, 0])),
        lambda x: torch.empty_like(x).fill_(1),
        lambda x: rms_norm(x.double(), x[0].double(), 1e-5),
    ],
    ids=["sum", "copy", "number", "fill", "another face"],
)
@torch.inference_mode()
def test_torch_operators_are_refused_and_everything_works_as_before(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    x = torch.randn(2, SIZE)
    with pytest.raises(NotCapturable, match="aten"):
        GraphPool(x.device).capture(lambda: function(x))
    assert torch.allclose(rms_norm(x, x[0], 1e-5), torch.nn.functional.rms_norm(x, (SIZE,), x[0], 1e-5), atol=1e-5)


@torch.inference_mode()
def test_an_error_of_the_function_passes_and_nothing_is_captured_any_more() -> None:
    x, pool = torch.randn(2, SIZE), GraphPool(torch.device("cpu"))
    with pytest.raises(ValueError, match="weight"):
        pool.capture(lambda: rms_norm(x, x, 1e-5))
    torch.testing.assert_close(x + 1, 1 + x)


@torch.inference_mode()
def test_a_kernel_that_refuses_its_input_ends_the_replay() -> None:
    ids, table = torch.tensor([1, 2]), torch.randn(5, SIZE)
    graph, result = GraphPool(ids.device).capture(lambda: embedding(ids, table))
    ids.copy_(torch.tensor([4, 0]))
    graph.replay()
    assert torch.equal(result, table[[4, 0]])
    ids[1] = 5
    with pytest.raises(IndexError, match="embed"):
        graph.replay()


@torch.inference_mode()
def test_attention_of_a_later_step_reads_its_lengths_and_blocks() -> None:
    torch.manual_seed(1)
    lengths = ([5, 40, 17], [90, 3, 33])
    steps = [step_of([random_sequence(1, length) for length in case], 16) for case in lengths]
    cache = steps[0].cache
    wide = torch.zeros(3, 9, dtype=torch.int32)
    metadata = type(steps[0].metadata)(
        query_start_loc=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.zeros(3, dtype=torch.int32),
        block_table=wide,
        query_lens_host=[1, 1, 1],
        seq_lens_host=[0, 0, 0],
    )
    metadata.refill(steps[0].metadata)
    query = steps[0].query.clone()
    graph, result = GraphPool(query.device).capture(lambda: paged_attention(query, cache, metadata, scale=0.3))
    assert torch.equal(result, paged_attention(query, cache, steps[0].metadata, scale=0.3))

    longer = step_of([random_sequence(1, length) for length in lengths[1]], 16)
    for mine, other in ((cache.key, longer.cache.key), (cache.value, longer.cache.value)):
        assert mine.shape[1:] == other.shape[1:]
    shared = min(cache.num_blocks, longer.cache.num_blocks)
    table = longer.metadata.block_table
    if int(table.max()) < shared:
        cache.key[:shared], cache.value[:shared] = longer.cache.key[:shared], longer.cache.value[:shared]
        metadata.refill(longer.metadata)
        graph.replay()
        assert torch.equal(result, paged_attention(query, cache, longer.metadata, scale=0.3))

    wrong = step_of([random_sequence(1, length) for length in lengths[0]], 16).metadata
    wrong.block_table[1, 2] = cache.num_blocks
    with pytest.raises(IndexError, match="entry 2 of sequence 1"):
        metadata.refill(wrong)
    more = step_of([random_sequence(2, 9) for _ in range(3)], 16).metadata
    with pytest.raises(ValueError, match="query lengths"):
        metadata.refill(more)
