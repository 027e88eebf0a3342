"""Where the time of prompts and of decode steps goes, kernel by kernel.

    python tools/profile_kernels.py --requests 1 --input-len 256 --output-len 32
    python tools/profile_kernels.py --requests 32 --quantization int8 --kv-cache-dtype int8_per_token_head

A model of the shape of Qwen3-0.6B with random weights answers random prompts through ``LLM``, twice for each of
``--repeats``: one token, which is the prompts' time, and ``--output-len`` tokens; the difference is that of the decode
steps. Each native kernel is timed around its call, so what is left of a step is Python: the engine's and the layers'.
That is done call by call; a second engine, which replays its decode steps as graphs, tells what a step takes then.
The first repeat also touches the cache's memory for the first time.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm_engine import LLM, SamplingParams
from vllm_kernels.cpu import native

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class Clock:
    """Seconds in each native kernel since the last ``restart``, and the whole."""

    def __init__(self) -> None:
        self._begin = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, kernel: native.Kernel, *args: Any) -> Any:
        """Call a kernel and note its time."""
        start = time.perf_counter()
        result = kernel.function(*args)
        self._seconds[kernel.name] += time.perf_counter() - start
        return result

    def restart(self) -> None:
        """Start a new measurement."""
        self._seconds.clear()
        self._begin = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Seconds by kernel, those outside of kernels, and all."""
        whole = time.perf_counter() - self._begin
        return {**self._seconds, "Python": whole - sum(self._seconds.values()), "all": whole}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--kv-cache-dtype", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(SHAPE))
        clock = Clock()
        for graphs in (False, True):
            native.set_recorder(None if graphs else clock.run)
            llm = LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype="bfloat16",
                max_model_len=4096,
                enable_prefix_caching=False,
                quantization=arguments.quantization,
                kv_cache_dtype=arguments.kv_cache_dtype,
                kv_cache_memory_bytes=5 << 30,
                enforce_eager=not graphs,
            )
            for repeat in range(arguments.repeats):
                prompts, steps = measure(llm, clock, arguments.requests, arguments.input_len, arguments.output_len)
                how = "as graphs" if graphs else "call by call"
                print(f"repeat {repeat + 1}, {how:14}milliseconds: prompts   a decode step")
                names = ["all"] if graphs else sorted(prompts | steps, key=lambda name: -steps.get(name, 0.0))
                for name in names:
                    print(f"  {name:24}{prompts.get(name, 0.0) * 1e3:16.1f}{steps.get(name, 0.0) * 1e3:16.2f}")
            llm.close()


def measure(llm: LLM, clock: Clock, requests: int, input_len: int, output_len: int) -> tuple[dict[str, float], ...]:
    """Seconds of the prompts and of one decode step, as ``Clock.read`` gives them."""
    prompts = [{"prompt_token_ids": random.choices(range(2, 150_000), k=input_len)} for _ in range(requests)]
    readings = []
    for max_tokens in (1, output_len):
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, detokenize=False)
        clock.restart()
        llm.generate(prompts, params, use_tqdm=False)
        readings.append(clock.read())
    first, both = readings
    return first, {name: (both[name] - first.get(name, 0.0)) / (output_len - 1) for name in both}


if __name__ == "__main__":
    main()
