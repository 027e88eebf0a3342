#!/usr/bin/env python
"""Measure what a light client waits for its first token while another API key floods the server.

``python tools/fair_share.py`` starts ``vllm serve --scheduling-policy fair`` with two keys. Each round asks it with the
first key alone and then beside each kind of flood with the second one: short requests at random moments (Poisson, open
loop), some of which meet each other even alone. The floods are closed loops of more requests than the server can do:

- ``decode``: 64 at a time, 32 tokens in and 256 out, so steps have many sequences
- ``prefill``: 24 at a time, 1,024 tokens in and 4 out, so steps are full of prompts
- ``bursts``: up to 48 at a time in bursts, prompts of 384 of which 256 are one of four prefixes, 64 out

The model has random weights and 8 layers of 768 by default, which two cores compute in steps as a GPU has them with a
real one: some 10 ms for a token of one sequence, most of a second for 2,048 tokens of prompts. It is large enough that
its steps, and not the clients on the same cores, are what one waits for. ``--layers`` and ``--hidden`` make others.

The median and the 99th percentile are those of all rounds together. The goal is a 99th percentile at most twice that of
alone. The last column is what the flood costs by that: tokens computed a second beside the light client (whose tokens
count, too) over those of the flood alone, before the light client was there.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from peers.machine import describe
from peers.report import machine_line
from peers.served import Served, our_command, run_client, running
from peers.shape import Shape

LIGHT, HEAVY = "light-key", "heavy-key"
GOAL = 2.0
FLOODS = {
    "decode": "--max-concurrency 64 --input-len 32 --output-len 256",
    "prefill": "--max-concurrency 24 --input-len 1024 --output-len 4",
    "bursts": "--max-concurrency 48 --request-rate 40 --burstiness 0.1 --dataset-name prefix_repetition "
    "--prefix-repetition-num-prefixes 4 --prefix-repetition-prefix-len 256 --input-len 128 --output-len 64",
}
FLOOD_REQUESTS = 500
FULL_FLOW_SECONDS = 2.0
ALONE_SECONDS = 4.0
IDLE_SECONDS = 20.0
TOKENS, STEPS = "vllm:iteration_tokens_total_sum", "vllm:iteration_tokens_total_count"
UNFINISHED = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass
class Waits:
    """Seconds to the first token, round by round, and what the server computed meanwhile."""

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    tokens_per_step: list[float] = field(default_factory=list)

    def percentile(self, which: float) -> float:
        """Of all rounds together."""
        return float(numpy.percentile([wait for waits in self.rounds for wait in waits], which))


def arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="where the model is kept")
    for name, default, what in (
        ("--rounds", 3, "alternations of alone and each flood"),
        ("--num-prompts", 60, "requests of the light client in a run"),
        ("--input-len", 128, "tokens of its prompts"),
        ("--output-len", 8, "tokens of its answers"),
        ("--layers", 8, "of the model"),
        ("--hidden", 768, "of the model"),
    ):
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--rate", type=float, default=6.0, help="light requests a second (default: %(default)s)")
    parser.add_argument("--flood", nargs="+", choices=FLOODS, default=[*FLOODS], help="which ones (default: all)")
    parser.add_argument("--policy", choices=("fair", "fcfs"), default="fair", help="(default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 0 when the goal is met in every flood, 1 when not, or something could not be done."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends server and clients, too
    print(machine_line(describe()), flush=True)
    try:
        alone, beside, unshared = _measure(options)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n".join(table(alone, beside, unshared)))
    return int(not all(reached(alone, one) for one in beside))


def reached(alone: Waits, beside: Waits) -> bool:
    """The goal is met."""
    return beside.percentile(99) <= GOAL * alone.percentile(99)


def table(alone: Waits, beside: list[Waits], unshared: dict[str, float]) -> Iterator[str]:
    """The lines that are printed.

    Args:
        alone: without a flood.
        beside: with each of them.
        unshared: tokens a second of each flood alone.
    """
    yield f"{'':8} {'requests':>8} {'TTFT median':>12} {'p99':>9} {'over alone':>11}  {'rounds':24} {'tokens/step':>11}"
    for one in [alone, *beside]:
        count, median, last = sum(map(len, one.rounds)), one.percentile(50), one.percentile(99)
        line = f"{one.name:8} {count:8} {median * 1e3:9.1f} ms {last * 1e3:6.1f} ms"
        if one is not alone:
            ratios = [
                numpy.percentile(mine, 99) / numpy.percentile(other, 99)
                for mine, other in zip(one.rounds, alone.rounds, strict=True)
            ]
            speed = numpy.median(one.tokens_per_second)
            line += (
                f" {last / alone.percentile(99):6.2f} {'met' if reached(alone, one) else 'MISSED':6} "
                f"{'  '.join(f'{ratio:.2f}' for ratio in ratios):24} {numpy.median(one.tokens_per_step):11.0f}  "
                f"{speed:.0f} tokens/s, {speed / unshared[one.name]:.2f} of {unshared[one.name]:.0f}"
            )
        yield line


def _measure(options: argparse.Namespace) -> tuple[Waits, list[Waits], dict[str, float]]:
    from peers.checkpoint import write_checkpoint  # torch comes in here, and --help needs none of it

    hidden = options.hidden
    shape = Shape(options.layers, hidden, hidden // 64, max(1, hidden // 128), 64, 3 * hidden, 4096)
    model = options.folder.absolute() / shape.name
    write_checkpoint(shape, model)
    alone, beside = Waits("alone"), [Waits(name) for name in options.flood]
    serve = [
        *(*our_command(), "serve", str(model), "--served-model-name", "served", "--host", "127.0.0.1"),
        *("--dtype", "bfloat16", "--max-model-len", "2048", "--scheduling-policy", options.policy),
        *("--num-gpu-blocks-override", "4096", "--api-key", LIGHT, HEAVY),
    ]
    with tempfile.TemporaryDirectory() as folder, running(serve, {}, LIGHT) as served:
        load = _Load(served, model, Path(folder), options)
        unshared = {name: load.flood_alone(name) for name in options.flood}  # this warms up, too
        for number in range(options.rounds):
            load.light(alone, number)
            for one in beside:
                with load.flood(one.name):
                    load.light(one, number)
    return alone, beside, unshared


class _Load:
    """The two clients of a server."""

    def __init__(self, served: Served, model: Path, folder: Path, options: argparse.Namespace) -> None:
        self._served = served
        self._options = options
        self._result = folder / "result.json"
        self._seed = 0
        self._client = [
            *(*our_command(), "bench", "serve", "--base-url", served.url, "--model", "served"),
            *("--tokenizer", str(model), "--ignore-eos", "--temperature", "0", "--disable-tqdm"),
        ]

    def light(self, waits: Waits, number: int) -> None:
        """Let the light client ask, and note what it waited."""
        options = self._options
        with self._computed(waits):
            run_client(
                [
                    *(*self._client, "--api-key", LIGHT, "--seed", self._new_seed()),
                    *("--num-prompts", str(options.num_prompts), "--request-rate", str(options.rate)),
                    *("--input-len", str(options.input_len), "--output-len", str(options.output_len)),
                    *("--save-detailed", "--result-dir", str(self._result.parent)),
                    *("--result-filename", self._result.name),
                ]
            )
        content = json.loads(self._result.read_text(encoding="utf-8"))
        if content["failed"]:
            raise RuntimeError(f"{content['failed']} light requests failed {waits.name}")
        waits.rounds.append(content["ttfts"])
        median, last = (float(numpy.percentile(content["ttfts"], which)) * 1e3 for which in (50, 99))
        said = f"round {number + 1}, {waits.name}: TTFT median {median:.1f} ms, p99 {last:.1f} ms"
        print(f"{said}; {waits.tokens_per_second[-1]:.0f} tokens/s computed", file=sys.stderr, flush=True)

    def flood_alone(self, name: str) -> float:
        """Tokens that it lets the server compute in a second."""
        waits = Waits(name)
        with self.flood(name), self._computed(waits):
            time.sleep(ALONE_SECONDS)
        return waits.tokens_per_second[0]

    @contextmanager
    def flood(self, name: str) -> Iterator[None]:
        """Flood the server during the block, once it is in full flow; after the block nothing of it is left."""
        command = [*self._client, "--api-key", HEAVY, "--seed", self._new_seed(), *FLOODS[name].split()]
        command += ["--num-prompts", str(FLOOD_REQUESTS)]
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
            try:
                self._wait(lambda: process.poll() is not None or self._unfinished() > 8, f"no flood {name} begins")
                time.sleep(FULL_FLOW_SECONDS)
                yield
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the flood {name} ended before its time:\n{log.read()[-1000:]}")
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()
        self._wait(lambda: self._unfinished() == 0, f"the flood {name} does not end")

    def _new_seed(self) -> str:
        """Prompts that are in nobody's cache."""
        self._seed += 1
        return str(self._seed)

    def _unfinished(self) -> float:
        return sum(map(self._served.metric, UNFINISHED))

    def _wait(self, until: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while not until():
            if time.monotonic() > deadline:
                raise RuntimeError(complaint)
            time.sleep(0.1)

    @contextmanager
    def _computed(self, waits: Waits) -> Iterator[None]:
        """Note what the server computes during the block."""
        before = time.monotonic(), self._served.metric(TOKENS), self._served.metric(STEPS)
        yield
        seconds, tokens, steps = (
            after - first
            for after, first in zip(
                (time.monotonic(), self._served.metric(TOKENS), self._served.metric(STEPS)), before, strict=True
            )
        )
        waits.tokens_per_second.append(tokens / seconds)
        waits.tokens_per_step.append(tokens / max(1.0, steps))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
