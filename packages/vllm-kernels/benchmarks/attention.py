"""How fast paged attention is: beside torch's attention, and beside what memory and multiplication allow.

    python packages/vllm-kernels/benchmarks/attention.py [--seconds 1] [--threads 2]

Heads are those of a model with 0.6 billion weights: 16 of queries, 8 of keys and values, of 128; queries are bf16, or
of the cache's own type where that is fp16 or fp32. A decoding step has one new token for each sequence; its blocks of
16 tokens are scattered over the cache, and caches take turns so that keys and values come from memory. The limit is a
read of one large array. A prefill has all its tokens new; the limit is the best of torch's bf16 products, in GFLOP/s of
4 * tokens^2 / 2 * heads * head_dim operations a sequence: what causal attention needs. torch:
``scaled_dot_product_attention`` of each sequence for itself, keys and values contiguous and in the type of the queries.
What stands on one line ran in turns in one process, and a figure is the best of its runs, as other work on the machine
only ever adds time.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from vllm_kernels.cache_format import CacheFormat
from vllm_kernels.cpu import native
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import KVCache, allocate_kv_cache

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 16, 8, 128, 16
FORMATS: tuple[CacheFormat, ...] = (
    "bfloat16",
    "float16",
    "float32",
    "fp8_e4m3",
    "fp8_per_token_head",
    "int8_per_token_head",
)
DECODES = [(1, 128), (1, 2048), (1, 16384), (8, 512), (8, 2048), (32, 128), (32, 300), (32, 2048), (64, 512)]
PREFILLS = [(1, 256), (1, 1024), (1, 4096), (8, 1024), (64, 64)]
COLD_BYTES = 160 << 20
"""Of the caches that take turns: several times what processors keep."""


def best_times(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest run of each, in turns for about ``seconds`` and three turns at least."""
    best = [float("inf")] * len(runs)
    end, turns = time.perf_counter() + seconds, 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def query_type(cached: CacheFormat) -> torch.dtype:
    return {"float16": torch.float16, "float32": torch.float32}.get(cached, torch.bfloat16)


def filled_cache(num_blocks: int, cached: CacheFormat) -> KVCache:
    cache = allocate_kv_cache(num_blocks, BLOCK, KV_HEADS, HEAD_DIM, cached, "cpu")
    for entries in (cache.key, cache.value):
        if entries.dtype.itemsize == 1:
            entries.view(torch.uint8).random_(0, 64)
        else:
            entries.normal_()
    if cache.key_scale is not None and cache.value_scale is not None:
        cache.key_scale.fill_(0.01)
        cache.value_scale.fill_(0.01)
    return cache


def step_of(sequences: int, new: int, length: int) -> tuple[AttentionMetadata, int]:
    """Metadata of sequences that are alike, and the blocks that their cache has."""
    each = -(-length // BLOCK)
    table = torch.randperm(sequences * each).view(sequences, each).int()
    starts = torch.arange(sequences + 1, dtype=torch.int32) * new
    lengths = torch.full((sequences,), length, dtype=torch.int32)
    return AttentionMetadata(starts, lengths, table, [new] * sequences, [length] * sequences), sequences * each


def torch_attention(sequences: int, new: int, length: int, dtype: torch.dtype, copies: int) -> Callable[[], object]:
    query = torch.randn(1, HEADS, new, HEAD_DIM, dtype=dtype)
    shape = (copies, sequences, 1, KV_HEADS, length, HEAD_DIM)
    keys, values = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    turns = itertools.cycle(range(copies))

    def run() -> None:
        copy = next(turns)
        for key, value in zip(keys[copy], values[copy], strict=True):
            scaled_dot_product_attention(query, key, value, is_causal=new > 1, enable_gqa=True)

    return run


def ours(sequences: int, new: int, length: int, cached: CacheFormat, copies: int) -> Callable[[], object]:
    metadata, num_blocks = step_of(sequences, new, length)
    turns = itertools.cycle([filled_cache(num_blocks, cached) for _ in range(copies)])
    query = torch.randn(sequences * new, HEADS, HEAD_DIM).to(query_type(cached))
    out = torch.empty_like(query)  # as in the engine, where an output finds memory that was used before
    return lambda: paged_attention(query, next(turns), metadata, scale=HEAD_DIM**-0.5, out=out)


def decode_table(seconds: float) -> None:
    array = torch.ones(COLD_BYTES // 8, dtype=torch.int64)
    print("| sequences x context | cache | us | GB/s | read GB/s | of the limit | torch us | faster by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (sequences, length), cached in itertools.product(DECODES, FORMATS):
        entry = allocate_kv_cache(1, 1, 1, 1, cached, "cpu").key.itemsize
        num_bytes = 2 * sequences * length * KV_HEADS * (HEAD_DIM * entry + (4 if "token_head" in cached else 0))
        copies = max(1, min(64, -(-COLD_BYTES // num_bytes)))
        runs = [
            ours(sequences, 1, length, cached, copies),
            torch_attention(sequences, 1, length, query_type(cached), copies),
            lambda: array.sum(),
        ]
        own, theirs, read = best_times(runs, seconds)
        speed, limit = num_bytes / own / 1e9, array.nbytes / read / 1e9
        print(
            f"| {sequences} x {length} | {cached} | {own * 1e6:.0f} | {speed:.1f} | {limit:.1f} | {speed / limit:.0%} "
            f"| {theirs * 1e6:.0f} | {theirs / own:.1f} |",
            flush=True,
        )


def prefill_table(seconds: float) -> None:
    x, weight = torch.randn(1024, 1024).bfloat16(), torch.randn(4096, 1024).bfloat16()
    print("| sequences x tokens | cache | ms | GFLOP/s | bf16 product GFLOP/s | of that | torch ms | faster by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (sequences, tokens), cached in itertools.product(PREFILLS, FORMATS):
        runs = [
            ours(sequences, tokens, tokens, cached, 1),
            torch_attention(sequences, tokens, tokens, query_type(cached), 1),
            lambda: linear(x, weight),
        ]
        own, theirs, product = best_times(runs, seconds)
        speed, limit = 2 * sequences * tokens**2 * HEADS * HEAD_DIM / own / 1e9, 2 * 1024 * 1024 * 4096 / product / 1e9
        print(
            f"| {sequences} x {tokens} | {cached} | {own * 1e3:.2f} | {speed:.0f} | {limit:.0f} | {speed / limit:.0%} "
            f"| {theirs * 1e3:.2f} | {theirs / own:.1f} |",
            flush=True,
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of a table (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, level {native.level()}, torch {torch.__version__}\n")
    decode_table(arguments.seconds)
    print()
    prefill_table(arguments.seconds)


if __name__ == "__main__":
    main()
