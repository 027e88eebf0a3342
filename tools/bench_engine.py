#!/usr/bin/env python
"""Measure our engine by ``vllm bench`` and print its figures as a table: ``make bench``.

    python tools/bench_engine.py
    python tools/bench_engine.py --model qwen3-0.6b

``demo`` is the built-in model; ``qwen3-0.6b`` has the shape of Qwen3-0.6B and random bf16 weights, and is written to
the folder that ``compare_peers.py`` has as well, unless it is there. Each line says with which command it was measured:
each takes less than a minute or two, and nothing else should run meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.machine import describe
from peers.report import machine_line
from peers.shape import Shape

DEMO, LARGE = "demo", "qwen3-0.6b"


@dataclass(frozen=True)
class Run:
    """One line of the table: a benchmark with its options, and what to show of its result."""

    benchmark: str
    options: tuple[str, ...]
    show: Callable[[dict[str, Any]], str]


def latency(result: dict[str, Any]) -> str:
    """Mean, median and 99th percentile of a batch."""
    mean, percentiles = result["avg_latency"], result["percentiles"]
    return f"{mean:.3f} s a batch (median {percentiles['50']:.3f}, p99 {percentiles['99']:.3f})"


def throughput(result: dict[str, Any]) -> str:
    """Requests and tokens a second."""
    return (
        f"{result['requests_per_second']:.1f} requests/s, {result['output_tokens_per_second']:.0f} output tokens/s, "
        f"{result['tokens_per_second']:.0f} tokens/s"
    )


def startup(result: dict[str, Any]) -> str:
    """Seconds to the first token, and its longest phases."""
    first = result["first_token_seconds"]
    longest = sorted(result["phases"].items(), key=lambda phase: -phase[1]["median"])[:4]
    phases = ", ".join(f"{name} {spread['median']:.2f}" for name, spread in longest)
    return f"first token after {first['median']:.2f} s ({first['min']:.2f} to {first['max']:.2f}): {phases}, ..."


RUNS = {
    DEMO: (
        Run("latency", ("--batch-size", "1"), latency),
        Run("latency", (), latency),
        Run("throughput", ("--input-len", "128", "--output-len", "64", "--num-warmups", "32"), throughput),
        Run(
            "throughput",
            ("--input-len", "128", "--output-len", "64", "--num-warmups", "32", "--async-engine"),
            throughput,
        ),
        Run("startup", ("--num-iters", "7"), startup),
    ),
    LARGE: (
        Run("latency", ("--batch-size", "1", "--num-iters", "3", "--num-iters-warmup", "1"), latency),
        Run("latency", ("--num-iters", "3", "--num-iters-warmup", "1"), latency),
        Run(
            "throughput",
            ("--num-prompts", "32", "--input-len", "256", "--output-len", "64", "--num-warmups", "2"),
            throughput,
        ),
        Run("startup", ("--num-iters", "5"), startup),
    ),
}


def main() -> None:
    """The command line. Ends with the exit code of a benchmark that fails."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(RUNS), default=DEMO, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="for the model of random weights")
    parser.add_argument("--only", choices=("latency", "throughput", "startup"), help="one of the benchmarks")
    arguments = parser.parse_args()
    model = [DEMO]
    if arguments.model == LARGE:
        from peers.checkpoint import write_checkpoint  # torch comes in here, and --help needs none of it

        folder = arguments.folder.absolute() / Shape().name
        write_checkpoint(Shape(), folder)
        model = [str(folder), "--max-model-len", "2048"]
    print(f"{machine_line(describe())}\n\n| `vllm bench` | figures |\n| --- | --- |", flush=True)
    for run in RUNS[arguments.model]:
        if arguments.only in (None, run.benchmark):
            shown = " ".join((run.benchmark, *run.options, arguments.model))
            print(f"| `{shown}` | {run.show(measure(run, model))} |", flush=True)


def measure(run: Run, model: list[str]) -> dict[str, Any]:
    """The result of a benchmark, which has the terminal's stderr while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "result.json"
        # The model and what is for the engine come last: `startup` gives them to `vllm serve`.
        command = [sys.executable, "-m", "vllm_cli", "bench", run.benchmark, *run.options, "--output-json", str(saved)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        if run.benchmark == "startup":
            environment.pop("VLLM_LOGGING_LEVEL")  # its phases are read from the log
        done = subprocess.run([*command, *model], stdout=subprocess.DEVNULL, env=environment)
        if done.returncode:
            sys.exit(done.returncode)
        result: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
        return result


if __name__ == "__main__":
    main()
