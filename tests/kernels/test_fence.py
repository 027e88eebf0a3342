"""No native kernel touches what lies behind its tensors: all end where memory ends, in the middle of a vector."""

import mmap
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional

from tests.kernels import fence
from vllm_kernels.backend import use_face
from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.cpu import linear as cpu_linear
from vllm_kernels.cpu import pages
from vllm_kernels.ops import activation, norm, sampling
from vllm_kernels.ops.add import add
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import allocate_kv_cache, write_kv
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight, rows
from vllm_kernels.ops.quantization import new_weight as new_quantized_weight
from vllm_kernels.ops.rotary import rope_and_cache

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SIZES = (1, 15, 17, 33, 100)


@pytest.fixture(autouse=True)
def behind_a_fence(level, monkeypatch):
    """Each level of the machine; what torch makes ends at a page's end, and so do packed weights."""
    monkeypatch.setattr(cpu_linear, "zeros", fence.zeros)
    monkeypatch.setattr(pages, "zeros", fence.zeros)
    with use_face("cpu"), fence.Fence():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=ROUNDING, ids=str)
def dtype(request):
    return request.param


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    rounding = ROUNDING[found.dtype]
    return torch.allclose(found.double(), wanted.double(), rtol=rounding, atol=rounding)


def test_what_torch_makes_ends_where_memory_ends():
    for tensor in (torch.ones(5), torch.empty(3, 7, dtype=torch.bfloat16), torch.randn(2, 3).T.contiguous()):
        end = tensor.data_ptr() + tensor.nbytes
        assert f"\n{end:x}-{end + mmap.PAGESIZE:x} ---p " in Path("/proc/self/maps").read_text()


def test_rows_of_activations(dtype):
    for size in SIZES:
        x, y = torch.randn(3, size).to(dtype), torch.randn(3, size).to(dtype)
        weight, bias = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
        total = (x.double() + y.double()).to(dtype)
        scaled = functional.rms_norm(x.double(), (size,), weight.double(), 1e-3)
        assert close(norm.rms_norm(x, weight, 1e-3), scaled)
        assert close(norm.layer_norm(x, weight, bias, 1e-3), normed(x, weight, bias))
        assert close(norm.fused_add_rms_norm(x, y, weight, 1e-3)[1], total)
        assert close(norm.fused_add_layer_norm(x, y, weight, bias, 1e-3)[1], total)
        assert close(add(x, y), total)
        assert close(activation.gelu(x), functional.gelu(x.double()))
        gate = torch.randn(3, 2 * size).to(dtype)
        first, second = gate.double().chunk(2, dim=-1)
        assert close(activation.silu_and_mul(gate), functional.silu(first) * second)
        ids = torch.tensor([2, 0, 1])
        assert close(embedding(ids, x, 0.5), x[ids].double() / 2)


def normed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), 1e-3)


def test_products(dtype):
    for count, columns, size in ((1, 1, 1), (1, 65, 33), (2, 17, 15), (5, 130, 70), (7, 63, 31), (20, 66, 100)):
        x, matrix = torch.randn(count, size).to(dtype), torch.randn(columns, size).to(dtype)
        bias, residual = torch.randn(columns).to(dtype), torch.randn(count, columns).to(dtype)
        weight = new_weight(columns, size, dtype)
        fill(weight, matrix)
        exact = x.double() @ matrix.double().T + bias.double() + residual.double()
        error = linear(x, weight, bias, residual=residual).double() - exact
        assert error.abs().max() < 20 * ROUNDING[dtype]
        ids = torch.tensor([columns - 1, 0])
        assert torch.equal(rows(weight, ids), matrix[ids])
        if columns % 2 == 0:
            gated = new_weight(columns, size, dtype, gated=True)
            fill(gated, matrix)
            gate, value = (x.double() @ matrix.double().T + bias.double()).chunk(2, dim=1)
            error = gated_linear(x, gated, "silu", bias).double() - functional.silu(gate) * value
            assert error.abs().max() < 400 * ROUNDING[dtype]


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, 24), (4, None), (4, 24)])
def test_products_of_quantised_weights(dtype, bits, group_size, activation_bits):
    for count, columns, size in ((1, 1, 1), (1, 65, 33), (5, 130, 70), (20, 66, 100)):
        x, matrix = torch.randn(count, size).to(dtype), torch.randn(columns, size).to(dtype)
        weight = new_quantized_weight(
            columns, size, dtype, bits=bits, group_size=group_size, activation_bits=activation_bits
        )
        fill(weight, matrix)
        stored = rows(weight, torch.arange(columns)).double()
        error = linear(x, weight).double() - x.double() @ stored.T
        assert error.abs().max() < 0.2 * size**0.5


@pytest.mark.parametrize("format", get_args(CacheFormat))
@pytest.mark.parametrize("query_len", [1, 8])
def test_rotation_cache_and_attention(format, query_len):
    """One sequence fills the cache to its last slot; few queries are multiplied from it, more are worth packing."""
    dtype = torch.bfloat16 if format in ("bfloat16", "fp8_e5m2", "int8_per_token_head") else torch.float32
    for head_dim, rotary_dim, block_size in ((1, 0, 5), (7, 6, 16), (20, 6, 3), (65, 0, 1), (66, 66, 16)):
        num_tokens, options = 2 * block_size, {"norm_eps": 1e-3, "interleaved": block_size == 3}
        cache = allocate_kv_cache(2, block_size, 2, head_dim, format)
        qkv, weight = torch.randn(num_tokens, 8 * head_dim).to(dtype), torch.randn(head_dim).to(dtype)
        table = torch.randn(num_tokens, rotary_dim) if rotary_dim else None
        places = torch.arange(num_tokens)
        query = rope_and_cache(qkv, 4, places, table, cache, places, q_norm=weight, k_norm=weight, **options)
        query_len = min(query_len, num_tokens)
        new = query[num_tokens - query_len :].contiguous()
        metadata = AttentionMetadata(
            query_start_loc=torch.tensor([0, query_len], dtype=torch.int32),
            seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
            block_table=torch.tensor([[0, 1]], dtype=torch.int32),
            query_lens_host=[query_len],
            seq_lens_host=[num_tokens],
        )
        found = paged_attention(new, cache, metadata, scale=head_dim**-0.5)
        with use_face("reference"):
            assert close(found, paged_attention(new.double(), cache, metadata, scale=head_dim**-0.5))
        write_kv(*(torch.randn(num_tokens, 2, head_dim).to(dtype) for _ in range(2)), cache, places)


def test_sampling():
    for size in (1, 17, 257):
        logits = torch.randn(3, size)
        logits[1, 0] = -torch.inf if size > 1 else 0.0
        every = torch.arange(3)
        filters = (
            torch.tensor([0.7, 1.0, 0.0]),
            torch.tensor([0, max(1, size // 2), 0]),
            torch.tensor([0.9, 1.0, 1.0], dtype=torch.float64),
            torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64),
        )
        uniforms = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
        k = min(size, 20)
        results = []
        for face in ("cpu", "reference"):
            with use_face(face):
                ids, logprobs, ranks = sampling.top_logprobs(logits, every % size, k)
                changed = logits.clone()
                sampling.apply_bias(changed, every, every % size, torch.ones(3))
                sampling.mask_tokens(changed, every[:1], every[:1])
                sampling.keep_tokens(changed, every[2:], every[:1])
                kept = sampling.filter_logits(logits, *filters)
                drawn = sampling.sample(logits, *filters, uniforms)
                results.append((sampling.greedy(logits), ids, ranks, changed, kept, drawn, logprobs))
        for found, wanted in zip(*results, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5), size
