"""Packing, the training loop and the files of the finished model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import Mix, documents, render
from .network import Network
from .tokenizer import save_tokenizer

Batch = tuple[Tensor, Tensor, Tensor]

_SHORT, _LONG = 256, 640
"""Row lengths: short documents share short rows, which are cheaper; tools and long chats need the others."""


def _encode(tokenizer: Tokenizer, seed: int, mix: Mix) -> Iterator[tuple[list[int], list[bool]]]:
    stream = documents(seed, mix)
    while True:
        segments = [render(next(stream)) for _ in range(256)]
        encoded = iter(tokenizer.encode_batch([text for pieces in segments for text, _ in pieces]))
        for pieces in segments:
            tokens: list[int] = []
            learn: list[bool] = []
            for _, learnt in pieces:
                ids = next(encoded).ids
                tokens += ids
                learn += [learnt] * len(ids)
            if len(tokens) <= _LONG:
                yield tokens, learn


class _Packer:
    """Fills rows of one length with whole documents."""

    def __init__(self, length: int, rows: int, pad: int) -> None:
        self.length, self.rows, self.pad = length, rows, pad
        self.bins: list[list[tuple[list[int], list[bool]]]] = []
        self.used: list[int] = []

    def add(self, tokens: list[int], learn: list[bool]) -> Batch | None:
        """Put a document into the first row with room; give a batch back when none has any."""
        batch = None
        row = next((i for i, used in enumerate(self.used) if used + len(tokens) <= self.length), None)
        if row is None:
            if len(self.bins) == self.rows:
                batch = self._flush()
            self.bins.append([])
            self.used.append(0)
            row = len(self.bins) - 1
        self.bins[row].append((tokens, learn))
        self.used[row] += len(tokens)
        return batch

    def _flush(self) -> Batch:
        shape = (self.rows, self.length)
        tokens = torch.full(shape, self.pad)
        group = torch.zeros(shape, dtype=torch.long)
        learn = torch.zeros(shape, dtype=torch.bool)
        for row, docs in enumerate(self.bins):
            at = 0
            for number, (ids, flags) in enumerate(docs, 1):
                tokens[row, at : at + len(ids)] = torch.tensor(ids)
                learn[row, at : at + len(ids)] = torch.tensor(flags)
                learn[row, at] = False  # nothing stands before the first token of a document
                group[row, at : at + len(ids)] = number
                at += len(ids)
        self.bins, self.used = [], []
        return tokens, group, learn


def batches(tokenizer: Tokenizer, seed: int, mix: Mix, size: int) -> Iterator[Batch]:
    """Batches of ``size`` tokens: ids, document numbers, and what is learnt."""
    pad = tokenizer.token_to_id("<|endoftext|>")
    assert pad is not None
    short, long = _Packer(_SHORT, size // _SHORT, pad), _Packer(_LONG, max(1, size // _LONG), pad)
    for tokens, learn in _encode(tokenizer, seed, mix):
        batch = (short if len(tokens) <= _SHORT else long).add(tokens, learn)
        if batch is not None:
            yield batch


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """The share of the peak rate: a straight way up, then half a cosine down to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _average_gradients(network: Network, workers: int) -> None:
    """Give every worker the mean of all gradients, in one message."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(together)
    together /= workers
    for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train(
    network: Network,
    tokenizer: Tokenizer,
    steps: int,
    tokens_per_step: int,
    rate: float,
    mix: Mix,
    seed: int,
    checkpoint: Callable[[int], None],
    every: int,
    worker: int = 0,
    workers: int = 1,
) -> None:
    """Run ``steps`` steps: Muon for the matrices of the layers, AdamW for the embedding and the norms.

    Each of the ``workers`` reads a stream of its own, ``tokens_per_step`` at a time, and all take the same steps.
    """
    matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in network.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    stream = batches(tokenizer, seed + 1000 * worker, mix, tokens_per_step)
    began, average, seen = time.monotonic(), 0.0, 0
    for step in range(steps):
        share = learning_rate(step, steps, warmup=100)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        tokens, group_ids, learn = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network.loss(tokens, group_ids, learn)
        loss.backward()  # type: ignore[no-untyped-call]
        if workers > 1:
            _average_gradients(network, workers)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += workers * tokens.numel()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 25 == 0 and worker == 0:
            spent = time.monotonic() - began
            print(f"step {step + 1}/{steps} loss {average:.4f} {seen / spent:.0f} tokens/s {spent:.0f} s", flush=True)
        if (step + 1) % every == 0 and step + 1 < steps:
            checkpoint(step + 1)
    checkpoint(steps)


def load_average(network: Network, folders: list[Path]) -> None:
    """Give ``network`` the mean of the weights in ``folders``."""
    loaded = [load_file(folder / "model.safetensors") for folder in folders]
    network.load_state_dict({name: torch.stack([w[name].float() for w in loaded]).mean(0) for name in loaded[0]})


def save_model(network: Network, tokenizer: Tokenizer, config: dict[str, Any], template: str, folder: Path) -> None:
    """Write the model directory: config, weights in bfloat16, tokenizer and template."""
    folder.mkdir(parents=True, exist_ok=True)
    end, stop = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    config = {**config, "eos_token_id": stop, "pad_token_id": end}
    generation = {"do_sample": False, "eos_token_id": [stop, end], "max_new_tokens": 256, "pad_token_id": end}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in network.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    save_tokenizer(tokenizer, folder, config["max_position_embeddings"])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
