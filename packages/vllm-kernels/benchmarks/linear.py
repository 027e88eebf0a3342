"""How fast products with packed weights are: beside torch's own, and the machine's limits measured in the same run.

    python packages/vllm-kernels/benchmarks/linear.py [--dtype bfloat16] [--model 0.6b] [--rows 1,32] [--threads 2]

For each weight and number of rows: microseconds of ours, operations (GFLOP/s) and bytes of the weight (GB/s) a second,
torch's ``linear`` on the plain weight, how many times faster ours is, and the share of the limit: the longer of reading
the weight and of multiplying, at the rates that this process just measured. All runs on a line took turns and a figure
is the best of its runs, as other work on the machine only ever adds time. A run multiplies by several weights that
exceed the caches together, as the layers of a model do, and the time is that of one.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from vllm_kernels.cpu import limits
from vllm_kernels.cpu.pages import zeros
from vllm_kernels.ops.linear import fill, linear, new_weight

SHAPES = {
    "0.6b": ((1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024), (1024, 151936)),
    "8b": ((4096, 6144), (4096, 4096), (4096, 24576), (12288, 4096)),
}
"""[in_features, out_features] of qkv, output, gate and value, down; the LM head."""
ROWS = (1, 4, 8, 16, 32, 64, 256, 1024)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BEYOND_CACHES = 96e6


def best_times(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest run of each, in turns for about ``seconds`` and at least three times."""
    best = [float("inf")] * len(runs)
    end, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or count < 4:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            # The first run of torch compiles its kernel.
            best[i] = min(best[i], time.perf_counter() - start) if count else best[i]
        count += 1
    return best


def bench(dtype: torch.dtype, shape: tuple[int, int], rows: list[int], seconds: float) -> None:
    size, columns = shape
    copies = max(1, round(BEYOND_CACHES / (size * columns * dtype.itemsize)))
    plain = [(torch.randn(columns, size) / 32).to(dtype) for _ in range(copies)]
    packed = [new_weight(columns, size, dtype) for _ in plain]
    for weight, tensor in zip(packed, plain, strict=True):
        fill(weight, tensor)
    memory = zeros(int(BEYOND_CACHES) // 256 * 256).fill_(1)
    for count in rows:
        x = torch.randn(count, size).to(dtype)
        reads, rates = [], []
        runs = [
            lambda x=x: [linear(x, weight) for weight in packed],
            lambda x=x: [functional.linear(x, weight) for weight in plain],
            lambda reads=reads: reads.append(limits.read_seconds(memory)),
            lambda rates=rates: rates.append(limits.multiply_rate(dtype)),
        ]
        mine, torchs, *_ = (best / copies for best in best_times(runs, seconds))
        operations, num_bytes = 2 * count * size * columns, size * columns * dtype.itemsize
        limit = max(num_bytes / memory.nbytes * min(reads), operations / max(rates))
        cells = (
            str(dtype)[6:],
            f"{size} x {columns}",
            count,
            f"{mine * 1e6:.0f}",
            f"{operations / mine / 1e9:.0f}",
            f"{num_bytes / mine / 1e9:.1f}",
            f"{operations / torchs / 1e9:.0f}",
            f"{torchs / mine:.2f}",
            f"{limit / mine:.0%}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="of weights; all three without it")
    parser.add_argument("--model", choices=SHAPES, action="append", help="whose shapes; all without it")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads")
    print("| type | K x N | rows | us | GFLOP/s | GB/s | torch GFLOP/s | times torch | of the limit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for dtype in arguments.dtype or DTYPES:
        for model in arguments.model or SHAPES:
            for shape in SHAPES[model]:
                bench(DTYPES[dtype], shape, arguments.rows, arguments.seconds)


if __name__ == "__main__":
    main()
