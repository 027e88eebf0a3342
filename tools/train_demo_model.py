#!/usr/bin/env python
"""Train the embedded demo model, or score one.

``python tools/train_demo_model.py`` makes the corpus, the tokenizer and the model from nothing but this folder
and writes them into the package of vllm-engine.  ``--eval DIR`` asks a finished model the prompts of the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# The tokenizer would otherwise start threads of its own, and the workers look for each other on the network.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
from demo_model.corpus import EVEN, MORE_HARD, MORE_TOOLS, Mix, check_renderer
from demo_model.evaluate import evaluate
from demo_model.network import CONFIG, Network
from demo_model.tokenizer import train_tokenizer
from demo_model.training import load_average, save_model, train
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "packages" / "vllm-engine" / "vllm_engine" / "demo"
TEMPLATE = DEMO / "chat_template.jinja"
PROMPTS = ROOT / "tests" / "e2e" / "demo_prompts.json"


class Cycle(NamedTuple):
    """One rise and fall of the learning rate."""

    steps: int
    rate: float
    mix: Mix


CYCLES = (Cycle(1300, 4e-3, EVEN), Cycle(700, 2.5e-3, MORE_TOOLS), Cycle(900, 1.5e-3, MORE_HARD))
"""The first cycle learns everything, the second copying into tool calls, and the third what is still wrong.

Every cycle forgets a little while it learns; the mean of the three ends is better than any of them.
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO, help="where the model is written")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "demo_model", help="where each cycle leaves its own"
    )
    parser.add_argument("--tokens-per-step", type=int, default=2560, help="of each process")
    parser.add_argument("--seed", type=int, default=20240)
    parser.add_argument("--threads", type=int, default=2, help="processes of one thread each; part of the recipe")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--shorten", type=int, default=1, help="divide the steps of every cycle by this, for a try")
    parser.add_argument("--first-cycle", type=int, default=1, help="go on from what the cycle before left in --work")
    parser.add_argument("--eval", type=Path, metavar="DIR", help="only score the model in DIR")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="the prompts to score with")
    return parser.parse_args()


def main() -> None:
    """Train and score, or only score."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.eval:
        evaluate(args.eval, args.prompts)
        return
    began = time.monotonic()
    check_renderer(TEMPLATE.read_text(encoding="utf-8"), args.seed + 1)
    tokenizer = train_tokenizer(CONFIG["vocab_size"], args.seed + 2).to_str()
    for number in range(args.first_cycle, len(CYCLES) + 1):
        with tempfile.TemporaryDirectory() as meeting_place:
            given = (args, number, tokenizer, f"{meeting_place}/workers")
            torch.multiprocessing.spawn(work, given, nprocs=args.threads)
    network = Network(CONFIG)
    load_average(network, [args.work / f"cycle-{i}" for i in range(1, len(CYCLES) + 1)])
    save_model(network, Tokenizer.from_str(tokenizer), CONFIG, TEMPLATE.read_text(encoding="utf-8"), args.out)
    digest = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    print(f"{time.monotonic() - began:.0f} s, sha256 of model.safetensors {digest}", flush=True)
    if args.prompts.exists():
        evaluate(args.out, args.prompts)


def work(worker: int, args: argparse.Namespace, number: int, tokenizer_json: str, meeting_point: str) -> None:
    """Train one cycle in one of the processes; the first of them writes the model."""
    cycle, seed = CYCLES[number - 1], args.seed + 10_000 * (number - 1)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    if args.threads > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting_point}", rank=worker, world_size=args.threads
        )
    template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(tokenizer_json)
    network = Network(CONFIG)
    if number > 1:
        load_average(network, [args.work / f"cycle-{number - 1}"])
    if worker == 0:
        print(f"cycle {number}, {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)

    def checkpoint(step: int) -> None:
        if worker == 0:
            save_model(network, tokenizer, CONFIG, template, args.work / f"cycle-{number}")

    train(
        network, tokenizer, cycle.steps // args.shorten, args.tokens_per_step, cycle.rate, cycle.mix, seed, checkpoint,
        args.every, worker, args.threads,
    )  # fmt: skip
    if args.threads > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
