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

# The tokenizer would otherwise start threads of its own, and the workers look for each other on the network.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
from demo_model.corpus import check_renderer
from demo_model.evaluate import evaluate
from demo_model.network import CONFIG, Network
from demo_model.tokenizer import train_tokenizer
from demo_model.training import save_model, train
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "packages" / "vllm-engine" / "vllm_engine" / "demo"
PROMPTS = ROOT / "tests" / "e2e" / "demo_prompts.json"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO, help="where the model is written")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--tokens-per-step", type=int, default=2560, help="of each process")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=20240)
    parser.add_argument("--threads", type=int, default=2, help="processes of one thread each; part of the recipe")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
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
    check_renderer((DEMO / "chat_template.jinja").read_text(encoding="utf-8"), args.seed + 1)
    tokenizer = train_tokenizer(CONFIG["vocab_size"], args.seed + 2).to_str()
    with tempfile.TemporaryDirectory() as meeting_place:
        torch.multiprocessing.spawn(work, (args, tokenizer, f"{meeting_place}/workers"), nprocs=args.threads)
    digest = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    print(f"{time.monotonic() - began:.0f} s, sha256 of model.safetensors {digest}", flush=True)
    if args.prompts.exists():
        evaluate(args.out, args.prompts)


def work(worker: int, args: argparse.Namespace, tokenizer_json: str, meeting_point: str) -> None:
    """Train in one of the processes; the first of them writes the model."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    if args.threads > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting_point}", rank=worker, world_size=args.threads
        )
    template = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(tokenizer_json)
    network = Network(CONFIG)
    if worker == 0:
        print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)

    def checkpoint(step: int) -> None:
        if worker == 0:
            save_model(network, tokenizer, CONFIG, template, args.out)

    train(
        network, tokenizer, args.steps, args.tokens_per_step, args.rate, args.seed, checkpoint, args.every, worker,
        args.threads,
    )  # fmt: skip
    if args.threads > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
