#!/usr/bin/env python
"""Train the embedded demo model, or score one.

``python tools/train_demo_model.py`` makes the corpus, the tokenizer and the model from nothing but this folder
and writes them into the package of vllm-engine.  ``--eval DIR`` asks a finished model the prompts of the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path

# The tokenizer would otherwise start threads of its own; the number of threads is part of the recipe.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from demo_model.corpus import check_renderer
from demo_model.evaluate import evaluate
from demo_model.network import CONFIG, Network
from demo_model.tokenizer import train_tokenizer
from demo_model.training import save_model, train

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "packages" / "vllm-engine" / "vllm_engine" / "demo"
PROMPTS = ROOT / "tests" / "e2e" / "demo_prompts.json"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO, help="where the model is written")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=20240)
    parser.add_argument("--threads", type=int, default=2, help="part of the recipe: other numbers round differently")
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
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    began = time.monotonic()
    template = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    check_renderer(template, args.seed + 1)
    tokenizer = train_tokenizer(CONFIG["vocab_size"], args.seed + 2)
    network = Network(CONFIG)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)

    def checkpoint(step: int) -> None:
        save_model(network, tokenizer, CONFIG, template, args.out)

    train(network, tokenizer, args.steps, args.tokens_per_step, args.rate, args.seed, checkpoint, args.every)
    digest = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    print(f"{time.monotonic() - began:.0f} s, sha256 of model.safetensors {digest}", flush=True)
    if args.prompts.exists():
        evaluate(args.out, args.prompts)


if __name__ == "__main__":
    main()
