"""How long one batch takes, from the call of the engine to its last token: the same batch again and again."""

import time
from argparse import Namespace
from typing import Any

import numpy

from vllm_bench.offline.answers import count_tokens, engine_errors
from vllm_bench.offline.model import look_up
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.token_ids import random_ids

PERCENTILES = (10, 25, 50, 75, 90, 99)


def measure_latency(options: Namespace, engine: dict[str, Any]) -> dict[str, Any]:
    """Do what the options of ``vllm bench latency`` say; returns the result under its documented keys.

    The prompts are random token ids, the same in each iteration; so the prefix cache, with which only the first would
    be computed, is off unless the settings of the engine switch it on.

    Raises:
        CommandError: the batch does not fit into the model, or the engine fails.
        ConfigError: a setting of the engine that cannot be honoured.
    """
    model = look_up(engine)
    model.check_length(options.input_len, options.output_len)
    from tqdm import tqdm

    from vllm_engine.llm import LLM
    from vllm_engine.params import SamplingParams

    rng = generator(model.seed, "prompts")
    prompts = random_ids(model.vocab_size, options.batch_size, options.input_len, rng)
    params = SamplingParams(
        n=options.n,
        temperature=1.0,
        ignore_eos=True,
        max_tokens=options.output_len,
        detokenize=not options.disable_detokenize,
    )
    latencies = []
    with LLM(**{"enable_prefix_caching": False, **engine}) as llm, engine_errors():
        total = options.num_iters_warmup + options.num_iters
        for iteration in tqdm(range(total), desc="iterations", disable=None):
            began = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - began
            count_tokens(outputs, [options.output_len] * options.batch_size)
            if iteration >= options.num_iters_warmup:
                latencies.append(seconds)
    percentiles = numpy.percentile(latencies, PERCENTILES).tolist()
    return {
        "model_id": model.name,
        "avg_latency": float(numpy.mean(latencies)),
        "latencies": latencies,
        "percentiles": {str(percent): value for percent, value in zip(PERCENTILES, percentiles, strict=True)},
        "batch_size": options.batch_size,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "n": options.n,
        "num_iters_warmup": options.num_iters_warmup,
        "seed": model.seed,
    }


def latency_lines(result: dict[str, Any]) -> list[str]:
    """The same figures for reading."""
    each = f" x {result['n']}" if result["n"] > 1 else ""
    tokens = result["batch_size"] * result["n"] * result["output_len"]
    lines = [
        f"batch                     {result['batch_size']} requests, {result['input_len']} tokens in, "
        f"{result['output_len']}{each} out",
        f"iterations                {len(result['latencies'])} after {result['num_iters_warmup']} warm-ups",
        f"average latency           {result['avg_latency']:.4f} s",
    ]
    lines += [f"{percent + '% latency':<26}{value:.4f} s" for percent, value in result["percentiles"].items()]
    return [*lines, f"output token throughput   {tokens / result['avg_latency']:.1f} /s"]
