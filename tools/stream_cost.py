#!/usr/bin/env python
"""Measure what a token of a stream costs the server apart from the model: CPU time of its processes for each.

``python tools/stream_cost.py`` serves the demo model to 64 streams of our ``vllm bench serve`` through either API and
reads the CPU time of the API process (HTTP, JSON, templates, tokenising, detokenising, its part of talking to the
engine) and that of the engine process before and after, from the system. The tokens are the server's own count.

``% of a core`` is what 1,000 output tokens a second take: 10 us a token are one per cent. The goal: at most 10 % for
the API process. The time of a request itself is in it, so longer answers make it less.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from peers.machine import describe
from peers.report import machine_line
from peers.served import Served, cpu_seconds, our_command, run_client, running

BACKENDS = {"/v1/completions": "openai", "/v1/chat/completions": "openai-chat"}
ENGINE = "vllm_engine.core.process"
TOKENS = "vllm:generation_tokens_total"
GOAL_PERCENT = 10.0


@dataclass
class Cost:
    """Microseconds of CPU for an output token, run by run."""

    path: str
    api: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)

    @property
    def percent(self) -> float:
        """Of a core, that the API process takes for 1,000 tokens a second: the median of the runs."""
        return statistics.median(self.api) / 10

    @property
    def reached(self) -> bool:
        """The goal is met."""
        return self.percent <= GOAL_PERCENT

    def line(self) -> str:
        """A row of the table."""
        verdict = "met" if self.reached else "MISSED"
        engine = statistics.median(self.engine)
        return (
            f"{self.path:22} {statistics.median(self.api):8.1f} ({min(self.api):.1f} to {max(self.api):.1f})"
            f" {self.percent:9.1f} %  {verdict:6} {engine:10.1f}"
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in (
        ("--rounds", 3, "runs of each API, in turn"),
        ("--num-prompts", 512, "requests of a run"),
        ("--input-len", 64, "tokens of a prompt"),
        ("--output-len", 64, "tokens of an answer"),
        ("--streams", 64, "requests at a time"),
    ):
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--model", default="demo", help="what is served (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 when the goal is met."""
    options = arguments()
    print(machine_line(describe()), flush=True)
    costs = [Cost(path) for path in BACKENDS]
    serve = [*our_command(), "serve", options.model, "--host", "127.0.0.1", "--no-enable-prefix-caching"]
    try:
        with running(serve, {}) as served:
            for number in range(options.rounds + 1):  # the first one warms up
                for cost in costs:
                    api, engine = _run(served, cost.path, number, options)
                    if number:
                        cost.api.append(api)
                        cost.engine.append(engine)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(costs, options.streams)))
    return int(not all(cost.reached for cost in costs))


def table(costs: list[Cost], streams: int) -> Iterator[str]:
    """The lines that are printed."""
    yield f"{streams} streams; microseconds of CPU for an output token"
    yield f"{'':22} {'API':>8} {'(min to max)':14} {'of a core':>11}  {'goal':6} {'engine':>10}"
    yield from (cost.line() for cost in costs)


def _run(served: Served, path: str, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Microseconds for a token: of the API process, and of the engine's."""
    processes = served.processes()
    before = {pid: cpu_seconds(pid) for pid in processes}
    tokens = served.metric(TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        run_client(
            [
                *(*our_command(), "bench", "serve", "--base-url", served.url, "--backend", BACKENDS[path]),
                *("--num-prompts", str(options.num_prompts), "--max-concurrency", str(options.streams)),
                *("--input-len", str(options.input_len), "--output-len", str(options.output_len)),
                *("--ignore-eos", "--temperature", "0", "--seed", str(seed), "--disable-tqdm", "--result-dir", folder),
            ]
        )
    tokens = served.metric(TOKENS) - tokens
    spent = {pid: (cpu_seconds(pid) - before[pid]) / tokens * 1e6 for pid in processes}
    engine = sum(micros for pid, micros in spent.items() if ENGINE in processes[pid])
    return sum(spent.values()) - engine, engine


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
