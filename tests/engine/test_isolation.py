"""A request's result depends on that request alone.

64 requests at once, each with its own random mix of every sampling field, arriving and being aborted at random, in a
cache so small that they are preempted. Each one that survives must be what it is when run alone.
"""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.tiny import make_tiny_model, make_tiny_tokenizer
from tests.engine.sampling.custom_processors import Steer
from vllm_engine import LLM, AsyncLLM, EngineArgs, OutputKind, RequestOutput, SamplingParams
from vllm_engine.config import EngineConfig

NUM_REQUESTS = 64
WORDS = ["the ", "cat ", "sat ", "on ", "a ", "mat", ".", " über", " 猫", "é", " x", "\n", "0", "7 "]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isolation")
    make_tiny_model("qwen3", path)
    make_tiny_tokenizer(path)
    return path


def random_params(rng: random.Random, vocab_size: int) -> SamplingParams:
    """Each field is set with some probability, so that every pair of features meets in one request or one batch."""

    def maybe(chance: float, make: Any) -> Any:
        return make() if rng.random() < chance else None

    fields: dict[str, Any] = {
        "n": maybe(0.15, lambda: rng.randrange(2, 4)),
        "temperature": rng.choice([0.0, 0.0, 0.7, 1.0, 1.8]),
        "top_p": maybe(0.3, lambda: rng.choice([0.1, 0.5, 0.95])),
        "top_k": maybe(0.3, lambda: rng.choice([1, 5, 40])),
        "min_p": maybe(0.2, lambda: rng.choice([0.01, 0.2])),
        "repetition_penalty": maybe(0.3, lambda: rng.choice([0.8, 1.3])),
        "presence_penalty": maybe(0.3, lambda: rng.uniform(-1, 1)),
        "frequency_penalty": maybe(0.3, lambda: rng.uniform(-1, 1)),
        "seed": rng.randrange(2**40),
        "stop": maybe(0.3, lambda: rng.sample(["a", "e ", "x", "\n\n", "th"], 2)),
        "stop_token_ids": maybe(0.3, lambda: rng.sample(range(vocab_size), 3)),
        "bad_words": maybe(0.2, lambda: rng.sample(["cat", "a", "é", "the mat"], 2)),
        "include_stop_str_in_output": maybe(0.3, lambda: True),
        "ignore_eos": maybe(0.5, lambda: True),
        "min_tokens": maybe(0.3, lambda: rng.randrange(1, 8)),
        "max_tokens": rng.randrange(8, 40),
        "logprobs": maybe(0.4, lambda: rng.choice([0, 1, 5])),
        "prompt_logprobs": maybe(0.2, lambda: rng.choice([0, 2])),
        "logit_bias": maybe(0.3, lambda: {rng.randrange(vocab_size): rng.uniform(-20, 20) for _ in range(4)}),
        "allowed_token_ids": maybe(0.2, lambda: rng.sample(range(vocab_size), 60)),
        "skip_special_tokens": maybe(0.3, lambda: False),
        "spaces_between_special_tokens": maybe(0.3, lambda: False),
        "truncate_prompt_tokens": maybe(0.2, lambda: rng.randrange(1, 20)),
        "extra_args": maybe(0.3, lambda: {"steer": rng.uniform(1, 6)}),
    }
    return SamplingParams(**{name: value for name, value in fields.items() if value is not None})


def random_prompt(rng: random.Random) -> str:
    shared = "".join(WORDS[:6]) * rng.randrange(4)
    return shared + "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 25)))


def engine_options(path: Path, logprobs_mode: str) -> dict[str, Any]:
    return {
        "model": str(path),
        "dtype": "float32",
        "max_model_len": 256,
        "block_size": 8,
        "logits_processors": [Steer],
        "logprobs_mode": logprobs_mode,
    }


def close_to(value: float) -> Any:
    """What equals a number within what float32 batches can differ by."""
    return pytest.approx(value, abs=5e-3)


def picture(output: RequestOutput, number: Callable[[float], Any] = float) -> list[Any]:
    """All that a user can see of a result. ``number``: what is made of log-probabilities."""
    return [
        [
            completion.text,
            list(completion.token_ids),
            completion.finish_reason,
            completion.stop_reason,
            _numbers(completion.logprobs, number),
        ]
        for completion in output.outputs
    ] + [_numbers(output.prompt_logprobs, number)]


def _numbers(entries: Any, number: Callable[[float], Any]) -> Any:
    # Only what was asked for by id: two neighbours in the list of most likely tokens may tie within rounding.
    return entries and [entry and {token: number(value.logprob) for token, value in entry.items()} for entry in entries]


@pytest.mark.parametrize(
    ("seed", "logprobs_mode", "ahead"),
    [(0, "raw_logprobs", False), (1, "processed_logprobs", False), (2, "raw_logprobs", True)],
)
async def test_each_surviving_output_is_its_solo_output(
    model_path: Path, seed: int, logprobs_mode: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ahead``: with steps launched before the tokens of the one before are known, as on a GPU; the solo ones not."""
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    rng = random.Random(seed)
    options = engine_options(model_path, logprobs_mode)
    with LLM(**options, kv_cache_memory_bytes=64 * 2**20) as llm:
        vocab_size = llm.ready.vocab_size
        work = [(random_prompt(rng), random_params(rng, vocab_size)) for _ in range(NUM_REQUESTS)]
        solo = [picture(llm.generate(prompt, params, use_tqdm=False)[0], close_to) for prompt, params in work]

    doomed = set(rng.sample(range(NUM_REQUESTS), 12))
    args = EngineArgs(**options, max_num_seqs=24, max_num_batched_tokens=48, num_gpu_blocks_override=120)
    monkeypatch.setattr(EngineConfig, "schedules_ahead", ahead)
    async_llm = AsyncLLM(args, multiprocess=False)
    await async_llm.start()

    async def ask(index: int) -> list[Any] | None:
        prompt, params = work[index]
        await asyncio.sleep(rng.random() * 0.5)
        stream = async_llm.generate(prompt, params.replace(output_kind=OutputKind.CUMULATIVE), f"client-{index}")
        seen = 0
        last: RequestOutput | None = None
        async for output in stream:
            last = output
            seen += 1
            if index in doomed and seen >= index % 5:
                await stream.aclose()
                return None
        assert last is not None and last.finished
        return picture(last)

    try:
        results = await asyncio.wait_for(asyncio.gather(*map(ask, range(NUM_REQUESTS))), timeout=120)
    finally:
        await async_llm.close()
    survivors = [index for index in range(NUM_REQUESTS) if results[index] is not None]
    assert len(survivors) >= NUM_REQUESTS - len(doomed)
    for index in survivors:
        assert results[index] == solo[index], f"request {index}: {work[index]}"
