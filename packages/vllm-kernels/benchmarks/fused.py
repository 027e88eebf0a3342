"""How fast the operations between products are, each in one pass over its rows: beside torch's operators and a copy.

    python packages/vllm-kernels/benchmarks/fused.py [--seconds 1] [--threads 2]

Shapes are those of a model with 0.6 billion weights: hidden size 1024, 16 query heads and 8 of keys and values of 128,
feed-forward size 3072, a vocabulary of 151,936; activations in bf16. For each operation and number of tokens: the time;
torch's, as its operators are composed in ``vllm_kernels.eager``; and that of a copy which moves as many bytes, the
limit where the rows come from memory. What stands on one line ran in turns in one process, and a figure is the best of
its runs, as other work on the machine only ever adds time. The last table is what a call costs beside its work.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch

from vllm_kernels.backend import use_face
from vllm_kernels.cache_format import CacheFormat, head_bytes
from vllm_kernels.ops import activation, norm
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache, write_kv
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.rotary import rope_and_cache

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY = 1024, 16, 8, 128, 3072, 151_936
TOKENS = (1, 32, 1024)
SAMPLE = 50e-6
"""Seconds: calls shorter than this are timed several at once. Short samples find the moments without other work."""


@dataclass
class Operation:
    """One call, and the bytes that it reads and writes."""

    name: str
    run: Callable[[], object]
    num_bytes: int


def best_times(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest run of each, in turns for about ``seconds``."""
    best = [float("inf")] * len(runs)
    calls = [1] * len(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            for _ in range(calls[i]):
                run()
            best[i] = min(best[i], (time.perf_counter() - start) / calls[i])
            calls[i] = max(1, int(SAMPLE / best[i]))
    return best


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def rows_operations(tokens: int) -> list[Operation]:
    x, residual, weight = random(tokens, HIDDEN), random(tokens, HIDDEN), random(HIDDEN)
    wide, gate_up = random(tokens, FEED_FORWARD), random(tokens, 2 * FEED_FORWARD)
    table, ids = random(VOCABULARY, HIDDEN), torch.randint(0, VOCABULARY, (tokens,))
    return [
        Operation("rms_norm", lambda: norm.rms_norm(x, weight, 1e-6), 2 * x.nbytes),
        Operation("fused_add_rms_norm", lambda: norm.fused_add_rms_norm(x, residual, weight, 1e-6), 4 * x.nbytes),
        Operation("layer_norm", lambda: norm.layer_norm(x, weight, weight, 1e-6), 2 * x.nbytes),
        Operation(
            "fused_add_layer_norm", lambda: norm.fused_add_layer_norm(x, residual, weight, weight, 1e-6), 4 * x.nbytes
        ),
        Operation("silu_and_mul", lambda: activation.silu_and_mul(gate_up), 3 * wide.nbytes),
        Operation("gelu_tanh_and_mul", lambda: activation.gelu_tanh_and_mul(gate_up), 3 * wide.nbytes),
        Operation("gelu", lambda: activation.gelu(wide), 2 * wide.nbytes),
        Operation("relu", lambda: activation.relu(wide), 2 * wide.nbytes),
        Operation("embedding", lambda: embedding(ids, table), 2 * x.nbytes),
        Operation("embedding, scaled", lambda: embedding(ids, table, 32.0), 2 * x.nbytes),
    ]


def cache_operations(tokens: int) -> list[Operation]:
    qkv, weight = random(tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM), random(HEAD_DIM)
    key, value = random(2, tokens, KV_HEADS, HEAD_DIM)
    positions, slots, angles = torch.arange(tokens), torch.randperm(4096)[:tokens], torch.randn(tokens, HEAD_DIM)

    def run_rope(cache: KVCache, norm_weight: torch.Tensor | None) -> object:
        return rope_and_cache(
            qkv, HEADS, positions, angles, cache, slots, q_norm=norm_weight, k_norm=norm_weight, norm_eps=1e-6
        )

    found = []
    formats: tuple[CacheFormat, ...] = get_args(CacheFormat)
    for cache_format in formats:
        cache = allocate_kv_cache(256, 16, KV_HEADS, HEAD_DIM, cache_format, "cpu")
        stored = 2 * tokens * KV_HEADS * head_bytes(cache_format, HEAD_DIM)
        read = 2 * tokens * KV_HEADS * HEAD_DIM * 2
        queries = 2 * tokens * HEADS * HEAD_DIM * 2
        if cache_format == "bfloat16":
            found.append(Operation("write_kv", partial(write_kv, key, value, cache, slots), read + stored))
            found.append(Operation("rope_and_cache, no norms", partial(run_rope, cache, None), queries + read + stored))
        run = partial(run_rope, cache, weight)
        found.append(Operation(f"rope_and_cache, {cache_format}", run, queries + read + stored))
    return found


def compare(seconds: float) -> None:
    print(f"{'':38}{'tokens':>7}{'us':>9}{'GB/s':>8}{'x torch':>9}{'x copy':>8}")
    for tokens in TOKENS:
        for operation in rows_operations(tokens) + cache_operations(tokens):
            source = torch.zeros(max(1, operation.num_bytes // 4), dtype=torch.int16)
            target = torch.empty_like(source)

            def torchs(run: Callable[[], object] = operation.run) -> object:
                with use_face("eager"):
                    return run()

            ours, theirs, limit = best_times([operation.run, torchs, partial(target.copy_, source)], seconds)
            speed = operation.num_bytes / ours / 1e9
            figures = f"{ours * 1e6:9.1f}{speed:8.1f}{theirs / ours:9.2f}{limit / ours:8.2f}"
            print(f"{operation.name:38}{tokens:7}{figures}", flush=True)


def overhead() -> None:
    """Processor time of calls with one token of one small head."""
    cache = allocate_kv_cache(4, 16, 1, 16, "bfloat16", "cpu")
    x, weight, head, one = random(1, 16), random(16), random(1, 1, 16), torch.tensor([1])
    qkv, angles, table = random(1, 48), torch.randn(64, 16), random(9, 16)
    calls: dict[str, Callable[[], object]] = {
        "rms_norm": lambda: norm.rms_norm(x, weight, 1e-6),
        "fused_add_rms_norm": lambda: norm.fused_add_rms_norm(x, x, weight, 1e-6),
        "layer_norm": lambda: norm.layer_norm(x, weight, weight, 1e-6),
        "silu_and_mul": lambda: activation.silu_and_mul(x),
        "gelu": lambda: activation.gelu(x),
        "embedding": lambda: embedding(one, table),
        "write_kv": lambda: write_kv(head, head, cache, one),
        "rope_and_cache": lambda: rope_and_cache(qkv, 1, one, angles, cache, one),
    }
    print("\nmicroseconds of a call")
    for name, call in calls.items():
        best = float("inf")
        for _ in range(20):
            start = time.thread_time()
            for _ in range(1000):
                call()
            best = min(best, (time.thread_time() - start) / 1000)
        print(f"{name:38}{best * 1e6:7.2f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        compare(arguments.seconds)
        overhead()


if __name__ == "__main__":
    main()
