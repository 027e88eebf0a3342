#!/usr/bin/env python
"""Measure the engine on this GPU from end to end, and hold it to its goals.

    python tools/gpu_end_to_end.py
    python tools/gpu_end_to_end.py --shapes qwen3-0.6b --batch 256 --steps 128

Two models of random weights, which are made on the device: the shape of Qwen3-0.6B, and that of a Llama 8B (in Qwen 3's
wiring, with tied embeddings). For each, the share of the time in which the GPU computes while a full batch decodes, by
torch's profiler (goal: 95 %), and a decode step of a single sequence beside the time that reading all weights once
takes at the copy bandwidth that is measured (goal: at most 1.4 times). Prints a line for each shape, or JSON lines;
exit code 1 when a goal is missed, 2 without a GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from peers.shape import Shape

SHAPES = {
    "qwen3-0.6b": Shape(),
    "llama-8b": Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128_256),
}
LEAST_BUSY = 0.95
MOST_OF_BOUND = 1.4
PROMPT = 32
"""Tokens of each: so few that all prompts are a step or two."""
BEGINNING = 0.25
"""Of the span that is recorded, left out: prompts, and the first steps after them."""


@dataclass(frozen=True)
class Result:
    """Of one shape.

    Args:
        shape, device: names.
        busy: share of the time in which the GPU computes, decoding ``batch`` sequences.
        tokens_per_second: of the batch, prompts included.
        step_seconds: of one sequence alone.
        bound_seconds: in which its weights can be read.
    """

    shape: str
    device: str
    batch: int
    busy: float
    tokens_per_second: float
    step_seconds: float
    bound_seconds: float

    @property
    def missed(self) -> list[str]:
        """Goals that are, in words."""
        found = []
        if self.busy < LEAST_BUSY:
            found.append(f"busy below {LEAST_BUSY:.0%}")
        if self.step_seconds > MOST_OF_BOUND * self.bound_seconds:
            found.append(f"a step above {MOST_OF_BOUND} of its bound")
        return found


def busy_share(intervals: Iterable[tuple[float, float]], beginning: float = BEGINNING) -> float:
    """The part of a span in which at least one of the intervals (begin, end) lies, its beginning left out.

    Raises ``ValueError`` where there is none.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("nothing ran on the GPU")
    last = max(end for _, end in ordered)
    first = ordered[0][0] + beginning * (last - ordered[0][0])
    covered, reached = 0.0, first
    for begin, end in ordered:
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered / (last - first)


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES), help="these only")
    parser.add_argument("--batch", type=int, default=256, help="sequences that decode at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=128, help="tokens of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    arguments = parser.parse_args()
    import torch  # --help needs none of it

    if not torch.cuda.is_available():
        print("gpu_end_to_end: error: there is no GPU to measure", file=sys.stderr)
        return 2
    missed = False
    for name in arguments.shapes:
        result = measure(name, arguments.batch, arguments.steps)
        missed |= bool(result.missed)
        if arguments.json:
            print(json.dumps({**asdict(result), "missed": result.missed}), flush=True)
        else:
            print(shown(result), flush=True)
    return 1 if missed else 0


def shown(result: Result) -> str:
    """A line for people."""
    ratio = result.step_seconds / result.bound_seconds
    goals = f"missed: {', '.join(result.missed)}" if result.missed else "goals reached"
    return (
        f"{result.shape} on {result.device}: batch {result.batch} keeps the GPU busy {result.busy:.1%} of the time at "
        f"{result.tokens_per_second:.0f} tokens/s; a step of one sequence takes {1e3 * result.step_seconds:.2f} ms, "
        f"{ratio:.2f} times the bound of {1e3 * result.bound_seconds:.2f} ms; {goals}"
    )


def measure(name: str, batch: int, steps: int) -> Result:
    """Load a shape and generate with it, twice: once to warm up, once recorded."""
    import torch
    from peers.checkpoint import write_description

    from vllm_engine import LLM, SamplingParams
    from vllm_kernels.benchmarks.ceilings import measure as measure_ceilings

    shape, device = SHAPES[name], torch.device("cuda")
    ceilings = measure_ceilings(device)
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        write_description(shape, Path(folder))
        llm = LLM(
            folder,
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=PROMPT + 2 * steps,
            max_num_seqs=batch,
            enable_prefix_caching=False,
        )
    try:

        def generate(sequences: int, tokens: int) -> float:
            prompts = [{"prompt_token_ids": [7 + row % 97] * PROMPT} for row in range(sequences)]
            params = SamplingParams(temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
            began = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - began

        generate(batch, steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            generate(batch, steps)
            torch.cuda.synchronize()
        intervals = [
            (event.time_range.start, event.time_range.end)
            for event in recorded.events() or ()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        seconds = generate(batch, steps)
        generate(1, steps)
        # Two lengths: what both have in common, the prompt's step and the way in and out, goes away.
        alone = (generate(1, 2 * steps) - generate(1, steps)) / steps
    finally:
        llm.close()
    return Result(
        shape=name,
        device=torch.cuda.get_device_name(device),
        batch=batch,
        busy=busy_share(intervals),
        tokens_per_second=batch * steps / seconds,
        step_seconds=alone,
        bound_seconds=shape.weight_bytes / ceilings.memory,
    )


if __name__ == "__main__":
    sys.exit(main())
