"""With VLLM_BATCH_INVARIANT the log-probabilities of a request are the same bits, whatever else the engine computes.

64 requests, once as one batch. Then some of them alone, all in another order, in chunks of several sizes, from cached
prefixes, on another number of threads: every float must be equal.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, RequestOutput, SamplingParams
from vllm_kernels.batch_invariance import use_batch_invariance

pytestmark = pytest.mark.cpu_only

NUM_REQUESTS = 64
NUM_TOKENS = 10
ALONE = 10
"""Requests that also run alone, the longest among them."""
BLOCK_SIZE = 16
SHAPE = {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 8, "num_key_value_heads": 2}
"""Wide enough that kernels cut rows, columns and sums into parts."""
VOCAB_SIZE = 1031
LONGEST = 1500
"""Tokens of one prompt: enough that attention is cut along the keys."""

Work = list[tuple[list[int], SamplingParams]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model without windows and one with."""
    path = tmp_path_factory.mktemp("models")
    for family in ("qwen3", "gemma3"):
        options: dict[str, Any] = {"head_dim": 32, "max_position_embeddings": 2048, "vocab_size": VOCAB_SIZE}
        make_tiny_model(family, path / family, **SHAPE, **options, initializer_range=0.1)
    return path


@pytest.fixture(scope="module", autouse=True)
def batch_invariance() -> Iterator[None]:
    with use_batch_invariance(True):
        yield


@pytest.fixture(scope="module")
def work() -> Work:
    rng = random.Random(3)
    lengths = [LONGEST, 1, 2, 15, 16, 17, 64, 65, 128, 255]
    lengths += [rng.randrange(1, 90) for _ in range(NUM_REQUESTS - len(lengths))]
    return [([rng.randrange(3, VOCAB_SIZE) for _ in range(length)], _params(rng)) for length in lengths]


def _params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.8]),
        seed=rng.randrange(2**40),
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
        logprobs=4,
        detokenize=False,
    )


def make_llm(path: Path, dtype: str, kv_cache_dtype: str, **options: Any) -> LLM:
    settings: dict[str, Any] = {
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "skip_tokenizer_init": True,
        "max_model_len": 2048,
        "max_num_seqs": NUM_REQUESTS,
        "max_num_batched_tokens": 4096,
        "kv_cache_memory_bytes": 64 * 2**20,
        "block_size": BLOCK_SIZE,
        "enable_prefix_caching": False,
    }
    return LLM(str(path), **(settings | options))


def ask(llm: LLM, work: Work) -> list[Any]:
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in work]
    return [bits(output) for output in llm.generate(prompts, [params for _, params in work], use_tqdm=False)]


def bits(output: RequestOutput) -> list[Any]:
    """Tokens and log-probabilities, all of them exact: a Python float holds every float32."""
    (completion,) = output.outputs
    assert len(completion.token_ids) == NUM_TOKENS and completion.logprobs is not None
    return [
        list(completion.token_ids),
        [{token: entry.logprob for token, entry in position.items()} for position in completion.logprobs],
    ]


def differing(found: list[Any], expected: list[Any]) -> list[int]:
    return [index for index, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]


@pytest.mark.parametrize(
    ("family", "dtype", "kv_cache_dtype"),
    [
        ("qwen3", "float32", "auto"),
        ("gemma3", "bfloat16", "auto"),
        ("qwen3", "bfloat16", "int8_per_token_head"),
    ],
)
def test_every_way_to_compute_a_request_gives_the_same_bits(
    models: Path, work: Work, family: str, dtype: str, kv_cache_dtype: str
) -> None:
    model_path = models / family
    with make_llm(model_path, dtype, kv_cache_dtype) as llm:
        expected = ask(llm, work)
        alone = [ask(llm, [one])[0] for one in work[:ALONE]]
        order = random.Random(0).sample(range(NUM_REQUESTS), NUM_REQUESTS)
        shuffled = ask(llm, [work[index] for index in order])
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - min(threads, 2))
        try:
            other_threads = ask(llm, work[: 2 * ALONE])
        finally:
            torch.set_num_threads(threads)
    failed = {
        "alone": differing(alone, expected[:ALONE]),
        "in another order": differing(shuffled, [expected[index] for index in order]),
        "on another number of threads": differing(other_threads, expected[: 2 * ALONE]),
    }
    for chunk in (16, 64, 500):
        with make_llm(
            model_path, dtype, kv_cache_dtype, max_num_batched_tokens=chunk, max_num_seqs=min(chunk, NUM_REQUESTS)
        ) as llm:
            failed[f"in chunks of {chunk}"] = differing(ask(llm, work), expected)
    with make_llm(model_path, dtype, kv_cache_dtype, enable_prefix_caching=True) as llm:
        # Half of each prompt first, so that the whole one starts in the middle of a block, then all of it again.
        ask(llm, [(prompt[: len(prompt) // 2 + 1], params) for prompt, params in work])
        failed["after half of it is cached"] = differing(ask(llm, work), expected)
        outputs = llm.generate({"prompt_token_ids": work[0][0]}, work[0][1], use_tqdm=False)
        assert (outputs[0].num_cached_tokens or 0) >= LONGEST - BLOCK_SIZE
        failed["after all of it is cached"] = differing(ask(llm, work), expected)
    assert {case: indices for case, indices in failed.items() if indices} == {}
