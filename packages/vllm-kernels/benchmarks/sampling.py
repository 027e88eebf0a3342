"""How fast tokens are drawn: beside torch's softmax, topk and multinomial, the eager face, and reading the logits once.

    python packages/vllm-kernels/benchmarks/sampling.py [--seconds 1] [--threads 2] [--rows 32]

Logits are fp32 ``[rows, 151936]``, normally distributed: flat (deviation 2, as random weights give them: the nucleus
has some ten thousand tokens) and steep (deviation 5: some dozens). The limit is torch's sum of the same logits, which a
large cache may still hold, as it holds what a model's last product has just written. What runs on one line runs in
turns in one process, and a figure is the best of its runs, as other work on the machine only ever adds time. Torch's
own way differs: its multinomial draws by a generator's state, so a row's token hangs on the batch.

"of step" is the share of a decode step of the 0.6B shape of Qwen3 in bf16, of which only the products run here: with
attention a step is longer, and the share smaller. The last line has the largest of all, and what is allowed. A step
draws once, so a line with penalties or log-probabilities comes on top of one that draws.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from vllm_kernels.backend import use_face
from vllm_kernels.linear_weight import LinearWeight
from vllm_kernels.ops import sampling
from vllm_kernels.ops.linear import fill, gated_linear, linear, new_weight

VOCABULARY = 151_936
HIDDEN, QUERY, KV, FFN, LAYERS = 1024, 2048, 1024, 3072, 28
"""Widths of the model whose step sampling is a share of."""
BEYOND_CACHES = 3
"""Layers that are made, and multiplied by in turns."""
ALLOWED_SHARE = 0.05
"""Of a step of 32 requests."""
DEVIATIONS = {"flat": 2.0, "steep": 5.0, "equal": 0.0}


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


class StepProducts:
    """The products of one decode step: of all layers and the head, with random bf16 weights."""

    def __init__(self, rows: int) -> None:
        shapes = (
            (QUERY + 2 * KV, HIDDEN, False),
            (HIDDEN, QUERY, False),
            (2 * FFN, HIDDEN, True),
            (HIDDEN, FFN, False),
        )
        self._layers = [[_random_weight(*shape) for shape in shapes] for _ in range(BEYOND_CACHES)]
        self._head = _random_weight(VOCABULARY, HIDDEN, False)
        self._inputs = {size: torch.randn(rows, size).bfloat16() for size in (HIDDEN, QUERY, FFN)}

    def __call__(self) -> None:
        hidden, query, inner = self._inputs.values()
        for layer in range(LAYERS):
            qkv, out, gate_and_value, down = self._layers[layer % BEYOND_CACHES]
            linear(hidden, qkv)
            linear(query, out, residual=hidden)
            gated_linear(hidden, gate_and_value, "silu")
            linear(inner, down, residual=hidden)
        linear(hidden, self._head, out_dtype=torch.float32)


def _random_weight(out_features: int, in_features: int, gated: bool) -> LinearWeight:
    weight = new_weight(out_features, in_features, torch.bfloat16, gated=gated)
    piece = (torch.randn(1024, in_features) / 32).bfloat16()
    for start in range(0, out_features, len(piece)):
        fill(weight, piece[: out_features - start], start)
    return weight


def by_eager(run: Callable[[], object]) -> object:
    with use_face("eager"):
        return run()


@dataclass
class Bench:
    """Prints lines about operations on the same logits.

    Args:
        logits: ``[rows, VOCABULARY]``.
        step_seconds: of a decode step of as many rows.
        seconds: for each line.
    """

    logits: torch.Tensor
    step_seconds: float
    seconds: float
    largest_share: float = 0.0

    def line(self, name: str, run: Callable[[], object], theirs: Callable[[], object]) -> None:
        """``run``: of the face in use; ``theirs``: the same by torch's operators."""
        runs = [run, partial(by_eager, run), theirs, self.logits.sum]
        ours, eager, torchs, read = best_times(runs, self.seconds)
        times = "".join(f"{each * 1e3:10.2f}" for each in (ours, eager, torchs, read))
        share = ours / self.step_seconds
        print(f"{name:34}{times}{eager / ours:10.1f}{torchs / ours:10.1f}{read / ours:10.2f}{share:10.1%}", flush=True)
        self.largest_share = max(self.largest_share, share)

    def run(self) -> None:
        """All lines."""
        titles = ("native", "eager", "torch", "read", "x eager", "x torch", "of limit", "of step")
        print(f"{'':34}{''.join(f'{title:>10}' for title in titles)}")
        logits, rows = self.logits, len(self.logits)
        self.line("greedy", partial(sampling.greedy, logits), partial(torch.argmax, logits, 1))
        uniforms = torch.rand(rows, dtype=torch.float64)
        for name, filters in CASES.items():
            run = partial(sampling.sample, logits, *filters.vectors(rows), uniforms)
            self.line(name, run, partial(torch_sample, logits, filters))
        tokens = logits.argmax(1)
        for k in (0, 5, 20):
            run = partial(sampling.top_logprobs, logits, tokens, k)
            self.line(f"logprobs {k}", run, partial(torch_logprobs, logits, tokens, k))
        self.line("penalties of 512 tokens", penalties(logits, 512), partial(torch_penalties, logits, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = arguments.rows
    (step,) = best_times([StepProducts(rows)], 2.0)
    print(f"products of a decode step of {rows} requests: {step * 1e3:.1f} ms")
    largest = 0.0
    for kind, deviation in DEVIATIONS.items():
        logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0)) * deviation
        print(f"\n{rows} rows of {VOCABULARY}, {kind}, {arguments.threads} threads; ms")
        bench = Bench(logits, step, arguments.seconds)
        bench.run()
        largest = max(largest, bench.largest_share)
    print(f"\nlargest share of a step: {largest:.1%}; allowed at 32 requests: {ALLOWED_SHARE:.0%}")


if __name__ == "__main__":
    main()
