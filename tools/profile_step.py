"""Print where the time of a decode step goes, apart from the arithmetic of the model.

Usage: ``python tools/profile_step.py [--sequences 64] [--layers 1] [--vocab 512] [--context 256] [--sampled]``

A random model with tiny layers, so that its forward is nearly free, generates for some sequences at once on one thread.
Each row is what one part of a step takes by itself, without the parts inside of it that have rows of their own: the
median and the best tenth of the steps, in microseconds. "engine's own" adds up all but the model and the sampler.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from vllm_engine import EngineArgs, SamplingParams
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.core.scheduler import Scheduler
from vllm_engine.execution import model_runner
from vllm_engine.execution.model_runner import ModelRunner
from vllm_engine.messages import EngineRequest
from vllm_engine.models.causal_lm import CausalLM
from vllm_engine.sampling.sampler import Sampler, Sampling

PARTS: list[tuple[str, Any, str]] = [
    ("schedule", Scheduler, "schedule"),
    ("update batch", ModelRunner, "_update_batch"),
    ("prepare inputs", model_runner, "build_step_inputs"),
    ("model: layers", CausalLM, "forward"),
    ("model: logits", CausalLM, "compute_logits"),
    ("sampler", Sampler, "begin"),
    ("sampler: wait", Sampling, "finish"),
    ("runner, rest", ModelRunner, "launch"),
    ("runner: take in", ModelRunner, "_finish"),
    ("update requests", Scheduler, "update"),
    ("core, rest", EngineCore, "step"),
]
"""Label, owner and name of each function that is timed."""
NOT_OWN = ("model: layers", "model: logits", "sampler", "sampler: wait")
OUTPUTS = "encode outputs"
"""As msgpack, for the process of the frontend; ``LLM`` does without."""
WARM_UP_STEPS = 20


class Stopwatch:
    """Microseconds of the step under way by label, each without what was timed inside of it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to ``spent[label]`` at each call."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                micros = (time.perf_counter() - start) * 1e6
                self.spent[label] = self.spent.get(label, 0.0) + micros - self._inner.pop()
                self._inner[-1] += micros

        return call


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64, help="sequences that decode side by side")
    parser.add_argument("--layers", type=int, default=1, help="layers of the model")
    parser.add_argument("--vocab", type=int, default=512, help="tokens of its vocabulary")
    parser.add_argument("--context", type=int, default=256, help="prompt tokens of each sequence")
    parser.add_argument("--steps", type=int, default=300, help="steps that are timed")
    parser.add_argument("--sampled", action="store_true", help="temperature 1 and top-p 0.9 instead of greedy")
    arguments = parser.parse_args()
    watch = Stopwatch()
    for label, owner, name in PARTS:
        setattr(owner, name, watch.timed(label, getattr(owner, name)))
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder), arguments)
        torch.set_num_threads(1)
        core = _start(Path(folder), arguments)
    torch.set_num_threads(1)
    _print_table(_measure(core, watch, arguments.steps), arguments)
    core.close()


def _write_model(folder: Path, arguments: argparse.Namespace) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": arguments.vocab,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def _start(folder: Path, arguments: argparse.Namespace) -> EngineCore:
    length = arguments.context + WARM_UP_STEPS + arguments.steps + 8
    args = EngineArgs(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_num_seqs=arguments.sequences,
        max_num_batched_tokens=max(arguments.sequences * arguments.context, 2048),
        max_model_len=length,
    )
    core = EngineCore(args.create_config(), folder)
    params = SamplingParams(temperature=1.0, top_p=0.9) if arguments.sampled else SamplingParams(temperature=0.0)
    for index in range(arguments.sequences):
        # Of different lengths, so that not all of them want a new block in the same step.
        prompt = [(7 * index + place) % 256 for place in range(arguments.context - index % 16)]
        core.add([EngineRequest(str(index), prompt, params, length, index, [], [], [])])
    for _ in range(WARM_UP_STEPS):
        core.step()
    return core


def _measure(core: EngineCore, watch: Stopwatch, steps: int) -> list[dict[str, float]]:
    encode = watch.timed(OUTPUTS, msgspec.msgpack.Encoder().encode)
    found = []
    for _ in range(steps):
        watch.spent = {}
        encode(core.step())
        found.append(watch.spent)
    return found


def _print_table(steps: list[dict[str, float]], arguments: argparse.Namespace) -> None:
    rows = {label: [step.get(label, 0.0) for step in steps] for label in [*(label for label, _, _ in PARTS), OUTPUTS]}
    rows["engine's own"] = [sum(micros for label, micros in step.items() if label not in NOT_OWN) for step in steps]
    print(f"{arguments.sequences} sequences, {arguments.layers} layers, one thread, {len(steps)} steps; microseconds")
    print(f"  {'':16}   median     best tenth")
    for label, micros in rows.items():
        best = statistics.quantiles(micros, n=10)[0]
        print(f"  {label:16} {statistics.median(micros):8.1f}   {best:8.1f}")


if __name__ == "__main__":
    main()
