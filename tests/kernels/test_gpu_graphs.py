"""Graphs on a GPU: a replay is the call, whichever graph of the pool was replayed before, and takes no more memory."""

from collections.abc import Callable

import pytest
import torch

from vllm_kernels.graphs import GraphPool, Pieces
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import allocate_kv_cache
from vllm_kernels.ops.linear import fill, linear, new_weight
from vllm_kernels.ops.norm import rms_norm

pytestmark = pytest.mark.gpu

SIZE = 256
SIZES = (64, 8, 1)


def layers(weight: torch.Tensor, projection: object, between: Callable[..., None]) -> Callable[..., torch.Tensor]:
    """Norm, product, a call that is left out, product; twice."""

    def function(x: torch.Tensor, pieces: Pieces) -> torch.Tensor:
        for _ in range(2):
            source = linear(rms_norm(x, weight, 1e-5), projection)  # type: ignore[arg-type]
            target = torch.empty(source.shape, dtype=source.dtype, device=source.device)
            pieces.between(between, source.view(-1, SIZE)[:, : SIZE // 2], target)
            x = linear(target, projection, residual=x)  # type: ignore[arg-type]
        return x

    return function


@torch.inference_mode()
def test_pieces_and_whole_graphs_of_one_pool_compute_what_the_calls_do() -> None:
    device = torch.device("cuda")
    projection = new_weight(SIZE, SIZE, torch.bfloat16, device=device)
    fill(projection, torch.randn(SIZE, SIZE) / 16)
    step = {"factor": 1.0}

    def between(source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(torch.cat((source, source), dim=1) * step["factor"])

    function = layers(torch.randn(SIZE, dtype=torch.bfloat16, device=device), projection, between)
    pool, x = GraphPool(device), torch.zeros(SIZES[0], SIZE, dtype=torch.bfloat16, device=device)
    captured = [
        (kind, size, *capture(lambda *pieces, size=size: function(x[:size], *(pieces or (Pieces(),)))))
        for size in SIZES
        for kind, capture in (("pieces", pool.capture_pieces), ("whole", pool.capture))
    ]
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    for round_ in range(4):
        for kind, size, graph, result in captured:
            x.copy_(torch.randn_like(x))
            step["factor"] = 1.0 + round_ if kind == "pieces" else 1.0  # which a whole graph keeps
            true = function(x[:size], Pieces())
            graph.replay()
            assert torch.equal(result, true), (kind, size)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_captured_attention_serves_any_lengths_and_padding_changes_nothing(size: int) -> None:
    torch.manual_seed(size)
    device = torch.device("cuda")
    cache = allocate_kv_cache(600, 16, 8, 128, "bfloat16", device)
    cache.key.normal_()
    cache.value.normal_()

    def metadata(count: int, lengths: list[int]) -> AttentionMetadata:
        return AttentionMetadata(
            query_start_loc=torch.arange(count + 1, dtype=torch.int32, device=device),
            seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
            block_table=torch.randint(600, (count, 128), dtype=torch.int32, device=device),
            query_lens_host=[1] * count,
            seq_lens_host=lengths,
        )

    static = metadata(size, [2048] * size)
    query = torch.randn(size, 32, 128, dtype=torch.bfloat16, device=device)
    graph, result = GraphPool(device).capture(lambda: paged_attention(query, cache, static, scale=0.1))
    for count in {size, max(1, size - 3)}:
        step = metadata(count, torch.randint(1, 2048, (count,)).tolist())
        static.refill(step)
        graph.replay()
        true = paged_attention(query[:count], cache, step, scale=0.1)
        torch.testing.assert_close(result[:count], true, atol=2e-2, rtol=2e-2)
        assert not result[count:].any()
