#!/usr/bin/env python
"""What results that are the same bits in any batch cost: the same work with ``VLLM_BATCH_INVARIANT`` 1 and 0, in turn.

    python tools/batch_invariance_cost.py --requests 8 --input-len 128 --output-len 32

The model has the shape of Qwen3-0.6B and random bf16 weights; it is written to the folder that ``compare_peers.py``
has as well, unless it is there. Two processes load it once, and each is stopped while the other works. A ratio is of
the two times of one round, and the last line has the median of all rounds; above 1, the invariant process is slower.
"others" is how many cores were busy with something else: above 0.1, measure again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers.driver import SCRIPTS, Driver
from peers.generate import generate
from peers.machine import describe
from peers.outcome import Outcome, alternate
from peers.report import machine_line
from peers.shape import Shape
from peers.works import MAX_MODEL_LEN, Contest, Work

VARIABLE = "VLLM_BATCH_INVARIANT"
OPTIONS = {"dtype": "bfloat16", "max_model_len": MAX_MODEL_LEN, "enable_prefix_caching": False}


def main() -> None:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache / "vllm-peers", help="for the model and logs")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="alternations (default: 3)")
    parser.add_argument("--layers", type=int, default=Shape.layers, help=f"of the model (default: {Shape.layers})")
    arguments = parser.parse_args()
    if min(vars(arguments)[name] for name in ("requests", "input_len", "output_len", "rounds", "layers")) < 1:
        parser.error("every number must be at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the children too
    shape = Shape(layers=arguments.layers)
    work = Work("generate", arguments.requests, arguments.input_len, arguments.output_len)
    print(machine_line(describe()))
    print(f"model {shape.name}; {work.requests} requests, {work.input_len} tokens in, {work.output_len} out")
    outcome = measure(arguments.folder.absolute(), shape, work, arguments.rounds)
    ratios = sorted(outcome.ratios)
    print(f"time with {VARIABLE}=1 over time without: {outcome.ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def measure(folder: Path, shape: Shape, work: Work, rounds: int) -> Outcome:
    """Let a process without and one with batch invariance do the work in turn, after one round to warm up; that with it
    is the "peer" of the outcome. The model and logs are in ``folder``.
    """
    from peers.checkpoint import write_checkpoint  # torch comes in here, and --help needs none of it

    model = folder / shape.name
    write_checkpoint(shape, model)
    outcome = Outcome(Contest("batch invariance", work, "invariant"))
    with ExitStack() as stack:
        plain, invariant = (stack.enter_context(engine(model, value)) for value in ("0", "1"))
        for driver in (plain, invariant):
            generate(driver, work, shape, "warm-ups", 0)
            driver.others = 0.0
        alternate(
            lambda number: outcome.ours.append(generate(plain, work, shape, "prompts", number)),
            lambda number: outcome.peer.append(generate(invariant, work, shape, "prompts", number)),
            rounds,
        )
        outcome.others = max(plain.others, invariant.others)
    for number, (ours, peer) in enumerate(zip(outcome.ours, outcome.peer, strict=True), 1):
        print(f"round {number}: {ours:.3f} s without, {peer:.3f} s with; others {outcome.others:.1f}", flush=True)
    return outcome


@contextmanager
def engine(model: Path, value: str) -> Iterator[Driver]:
    """Our engine in a process of its own, with the model loaded and the variable set."""
    command = [sys.executable, str(SCRIPTS / "vllm_api.py"), "vllm_engine"]
    environment = {VARIABLE: value, "HF_HUB_OFFLINE": "1"}
    with Driver(command, environment, model.with_name(f"batch-invariant-{value}.log")) as driver:
        driver.ask("load", model=str(model), options=OPTIONS)
        yield driver


if __name__ == "__main__":
    main()
