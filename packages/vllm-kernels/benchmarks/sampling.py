"""How fast tokens are drawn: beside torch's softmax, topk and multinomial, the eager face, and reading the logits once.

    python packages/vllm-kernels/benchmarks/sampling.py [--seconds 1] [--threads 2] [--rows 32]

Logits are fp32 ``[rows, 151936]``, normally distributed: flat (deviation 2, as random weights give them: the nucleus
has some ten thousand tokens) and steep (deviation 5: some dozens). The limit is torch's sum of the same logits, which a
large cache may still hold, as it holds what a model's last product has just written. What runs on one line runs in
turns in one process, and a figure is the best of its runs, as other work on the machine only ever adds time. Torch's
own way differs: its multinomial draws by a generator's state, so a row's token hangs on the batch.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from vllm_kernels.backend import use_face
from vllm_kernels.ops import sampling

VOCABULARY = 151_936
DEVIATIONS = {"flat": 2.0, "steep": 5.0}


@dataclass
class Filters:
    """Those of every row."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def vectors(self, rows: int) -> tuple[torch.Tensor, ...]:
        return (
            torch.full((rows,), self.temperature),
            torch.full((rows,), self.top_k),
            torch.full((rows,), self.top_p, dtype=torch.float64),
            torch.full((rows,), self.min_p, dtype=torch.float64),
        )


CASES = {
    "temperature": Filters(),
    "min_p 0.05": Filters(min_p=0.05),
    "top_k 50": Filters(top_k=50),
    "top_k 50, top_p 0.9": Filters(top_k=50, top_p=0.9),
    "top_k 50, top_p 0.9, min_p 0.02": Filters(top_k=50, top_p=0.9, min_p=0.02),
    "top_k 5000": Filters(top_k=5000),
    "top_p 0.9": Filters(top_p=0.9),
}


def torch_sample(logits: torch.Tensor, filters: Filters) -> torch.Tensor:
    """The usual composition of torch's operators."""
    columns = None
    if filters.top_k:
        logits, columns = logits.topk(filters.top_k, dim=1)
    elif filters.top_p < 1:
        logits, columns = logits.sort(dim=1, descending=True)
    weights = torch.softmax(logits / filters.temperature, dim=1)
    if filters.min_p:
        weights = weights.masked_fill(weights < filters.min_p * weights.amax(1, keepdim=True), 0)
    if filters.top_p < 1:
        weights = weights.masked_fill(weights.cumsum(1) - weights >= filters.top_p, 0)
    drawn = torch.multinomial(weights, 1)
    return drawn if columns is None else columns.gather(1, drawn)


def torch_logprobs(logits: torch.Tensor, tokens: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    logprobs = torch.log_softmax(logits, 1)
    own = logprobs.gather(1, tokens[:, None])
    return own, (logprobs > own).sum(1), *logprobs.topk(k, dim=1)


def penalties(logits: torch.Tensor, each: int) -> Callable[[], object]:
    """Of ``each`` tokens in each row."""
    rows = len(logits)
    tokens = torch.cat([torch.randperm(VOCABULARY)[:each] for _ in range(rows)])
    counts = torch.stack([tokens, torch.ones_like(tokens)], 1).int()
    factors = (torch.full((rows,), 1.01), torch.full((rows,), 0.01), torch.full((rows,), 0.01))
    offsets = torch.arange(rows + 1) * each
    return partial(sampling.apply_penalties, logits, torch.arange(rows), offsets, counts, *factors)


def torch_penalties(logits: torch.Tensor, each: int) -> torch.Tensor:
    """By dense counts, as is usual."""
    counts = torch.zeros(logits.shape, dtype=torch.int64)
    counts.scatter_add_(1, torch.randint(VOCABULARY, (len(logits), each)), torch.ones(len(logits), each).long())
    factor = torch.where(counts > 0, 1.01, 1.0)
    return torch.where(logits > 0, logits / factor, logits * factor) - 0.01 * counts - 0.01 * (counts > 0)


def best_times(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of the fastest run of each, in turns for about ``seconds``."""
    best = [float("inf")] * len(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or float("inf") in best:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def by_eager(run: Callable[[], object]) -> object:
    with use_face("eager"):
        return run()


def line(
    name: str, run: Callable[[], object], theirs: Callable[[], object], logits: torch.Tensor, seconds: float
) -> None:
    """``run``: of the face in use; ``theirs``: the same by torch's operators."""
    ours, eager, torchs, read = best_times([run, partial(by_eager, run), theirs, logits.sum], seconds)
    times = "".join(f"{each * 1e3:10.2f}" for each in (ours, eager, torchs, read))
    print(f"{name:34}{times}{eager / ours:10.1f}{torchs / ours:10.1f}{read / ours:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, seconds = arguments.rows, arguments.seconds
    for kind, deviation in DEVIATIONS.items():
        logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0)) * deviation
        print(f"\n{rows} rows of {VOCABULARY}, {kind}, {arguments.threads} threads; ms")
        print(
            f"{'':34}{'native':>10}{'eager':>10}{'torch':>10}{'read':>10}{'x eager':>10}{'x torch':>10}{'of limit':>9}"
        )
        line("greedy", partial(sampling.greedy, logits), partial(torch.argmax, logits, 1), logits, seconds)
        uniforms = torch.rand(rows, dtype=torch.float64)
        for name, filters in CASES.items():
            run = partial(sampling.sample, logits, *filters.vectors(rows), uniforms)
            line(name, run, partial(torch_sample, logits, filters), logits, seconds)
        tokens = logits.argmax(1)
        for k in (0, 5, 20):
            run = partial(sampling.top_logprobs, logits, tokens, k)
            line(f"logprobs {k}", run, partial(torch_logprobs, logits, tokens, k), logits, seconds)
        penalised = penalties(logits, 512)
        line("penalties of 512 tokens", penalised, partial(torch_penalties, logits, 512), logits, seconds)


if __name__ == "__main__":
    main()
