"""How fast products with quantised weights are, and how far off.

    python packages/vllm-kernels/benchmarks/quantized.py [--accuracy]

One row: bytes of the weight read each second, beside what a sum over as much memory reads. Many rows: operations a
second, beside those of the dense weight of bf16 and of torch's own. Each line compares what ran in turns, in one
process; a figure is the best of its runs, as other work on the machine only ever adds time.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops import linear as dense
from vllm_kernels.ops import quantization

SCHEMES: dict[str, dict[str, int | None]] = {
    "int8, int8 activations": {"bits": 8},
    "int4 g128, int8 activations": {"bits": 4, "group_size": 128},
    "int8 weight only": {"bits": 8, "activation_bits": None},
    "int4 g128 weight only": {"bits": 4, "group_size": 128, "activation_bits": None},
}
STREAM = (16384, 4096)
"""Larger than any cache even at 4 bits: [out_features, in_features]."""
SHAPES = ((3072, 1024), (1024, 3072), (4096, 4096))


def best_times(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest run of each, in turns for about ``seconds``."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def filled(rows: torch.Tensor, options: dict[str, int | None]) -> LinearWeight:
    weight = quantization.new_weight(*rows.shape, rows.dtype, **options)  # type: ignore[arg-type]
    dense.fill(weight, rows)
    return weight


def one_row(seconds: float) -> None:
    rows = torch.randn(STREAM).bfloat16()
    x = torch.randn(1, STREAM[1]).bfloat16()
    plain = dense.new_weight(*STREAM, torch.bfloat16)
    dense.fill(plain, rows)
    print(f"\n1 row, weight {list(STREAM)}\n{'':32}GB/s  read GB/s  share  x bf16")
    for name, options in SCHEMES.items():
        weight = filled(rows, options)
        memory = torch.ones(weight.nbytes // 4)
        runs = [lambda w=weight: dense.linear(x, w), lambda m=memory: m.sum(), lambda: dense.linear(x, plain)]
        taken, read, bf16 = best_times(runs, seconds)  # type: ignore[arg-type]
        speed, limit = weight.nbytes / taken / 1e9, memory.nbytes / read / 1e9
        print(f"{name:30}{speed:6.1f}{limit:11.1f}{speed / limit:7.2f}{bf16 / taken:8.2f}")


def many_rows(seconds: float) -> None:
    for shape in SHAPES:
        rows = torch.randn(shape).bfloat16()
        plain = dense.new_weight(*shape, torch.bfloat16)
        dense.fill(plain, rows)
        print(
            f"\nweight {list(shape)}\n{'':30}{'rows':>6}{'GOP/s':>8}{'bf16':>8}{'torch':>8}{'x bf16':>8}{'x torch':>9}"
        )
        for name, options in SCHEMES.items():
            weight = filled(rows, options)
            for count in (32, 256, 1024):
                x = torch.randn(count, shape[1]).bfloat16()
                runs = [
                    lambda x=x, w=weight: dense.linear(x, w),
                    lambda x=x, w=plain: dense.linear(x, w),
                    lambda x=x, w=rows: functional.linear(x, w),
                ]
                ours, bf16, torchs = best_times(runs, seconds)  # type: ignore[arg-type]
                work = 2e-9 * count * rows.numel()
                figures = (
                    f"{work / ours:8.0f}{work / bf16:8.0f}{work / torchs:8.0f}{bf16 / ours:8.2f}{torchs / ours:9.2f}"
                )
                print(f"{name:30}{count:6}{figures}")


def accuracy() -> None:
    """Of random normal weights and activations; then one column of activations in a hundred is 20 times larger."""
    torch.manual_seed(0)
    rows, x = torch.randn(1024, 4096), torch.randn(64, 4096)
    outliers = torch.where(torch.rand(4096) < 0.01, 20 * x, x)
    print(f"\nerror of the product relative to float64{'normal':>12}{'outliers':>10}")
    for name, options in SCHEMES.items():
        weight = filled(rows, options)
        errors = []
        for activations in (x, outliers):
            exact = activations.double() @ rows.double().T
            errors.append(float((dense.linear(activations, weight) - exact).norm() / exact.norm()))
        print(f"{name:40}{errors[0]:12.4f}{errors[1]:10.4f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="errors only")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    arguments = parser.parse_args()
    if not arguments.accuracy:
        one_row(arguments.seconds)
        many_rows(arguments.seconds)
    accuracy()


if __name__ == "__main__":
    main()
