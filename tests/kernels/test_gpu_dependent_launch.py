"""Kernels on a GPU that begin while the one before them runs give the same bits as when each waits for its end."""

import pytest
import torch

from vllm_kernels.graphs import GraphPool
from vllm_kernels.ops.activation import silu_and_mul
from vllm_kernels.ops.linear import fill, linear, new_weight
from vllm_kernels.ops.norm import fused_add_rms_norm, rms_norm
from vllm_kernels.ops.quantization import new_weight as new_quantized_weight

pytestmark = pytest.mark.gpu

SIZE = 2048
ROUNDS = 40


@pytest.mark.parametrize("rows", [1, 5, 16, 40])
@pytest.mark.parametrize("bits", [None, 4])
@torch.inference_mode()
def test_a_chain_of_short_and_long_kernels_computes_what_it_does_one_by_one(
    rows: int, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes what the one before made, and most write where an earlier one still read a moment ago."""
    torch.manual_seed(rows)
    device, dtype = torch.device("cuda"), torch.bfloat16
    if bits is None:
        up, down = (new_weight(size, SIZE, dtype, device=device) for size in (2 * SIZE, SIZE))
    else:
        up, down = (
            new_quantized_weight(size, SIZE, dtype, device, bits=bits, group_size=128, activation_bits=None)
            for size in (2 * SIZE, SIZE)
        )
    for weight in (up, down):
        fill(weight, torch.randn(weight.out_features, SIZE) / SIZE**0.5)
    scale = torch.rand(SIZE, dtype=dtype, device=device) + 0.5
    x = torch.randn(rows, SIZE, dtype=dtype, device=device)
    out = torch.empty_like(x)

    def chain() -> torch.Tensor:
        residual, hidden = x.clone(), torch.zeros_like(x)
        for _ in range(ROUNDS):
            hidden, residual = fused_add_rms_norm(hidden, residual, scale, 1e-6)
            hidden = linear(silu_and_mul(linear(hidden, up)), down)
        return out.copy_(rms_norm(hidden + residual, scale, 1e-6))

    with monkeypatch.context() as patched:
        patched.setattr("vllm_kernels.triton.kernel.are_used", lambda device: False)
        chain()
    torch.cuda.synchronize()
    true = out.clone()
    assert true.isfinite().all()
    graph, _ = GraphPool(device).capture(chain)
    for run in (chain, chain, graph.replay, graph.replay, graph.replay):
        out.zero_()
        run()
        torch.cuda.synchronize()
        assert torch.equal(out, true)
