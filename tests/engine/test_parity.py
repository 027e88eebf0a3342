"""Every model family computes what ``transformers`` computes, however its tokens are cut into steps.

Each case runs 16 prompts of mixed lengths, 64 greedy tokens each, in float32, and compares token for token with
``model.generate`` and the prompt's log-probabilities with the logits of one plain forward pass.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import FAMILIES, make_tiny_model
from vllm_engine import LLM, RequestOutput, SamplingParams
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.core.kv_cache.layout import group_layers
from vllm_engine.kv_layout import LayerKVSpec

NUM_PROMPTS = 16
NUM_TOKENS = 64
MAX_PROMPT = 90
# A smaller gap between the two best logits than this could be decided by the order of float32 additions.
MIN_GAP = 2e-4


@dataclass
class Truth:
    """What ``transformers`` says: prompts, 64 greedy tokens of each, and log-probabilities of the prompt tokens."""

    path: Path
    prompts: list[list[int]]
    tokens: list[list[int]]
    prompt_logprobs: list[list[float]]


@pytest.fixture(scope="module", params=FAMILIES)
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    path = tmp_path_factory.mktemp(str(request.param))
    model = make_tiny_model(request.param, path)
    rng = random.Random(str(request.param))
    lengths = [1, 2, 15, 16, 17, 33, MAX_PROMPT, *(rng.randrange(3, MAX_PROMPT) for _ in range(NUM_PROMPTS - 7))]
    found = Truth(path, [], [], [])
    for length in lengths:
        while True:
            prompt = [rng.randrange(4, model.config.get_text_config().vocab_size) for _ in range(length)]
            tokens, logprobs, gap = _reference(model, prompt)
            if gap > MIN_GAP:
                break
        found.prompts.append(prompt)
        found.tokens.append(tokens)
        found.prompt_logprobs.append(logprobs)
    return found


@torch.no_grad()
def _reference(model: Any, prompt: list[int]) -> tuple[list[int], list[float], float]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    logits = model(out[None]).logits[0].float()
    best = logits[len(prompt) - 1 : -1].topk(2).values
    logprobs = logits.log_softmax(-1)[: len(prompt) - 1].gather(1, ids[0, 1:, None])[:, 0]
    return out[len(prompt) :].tolist(), logprobs.tolist(), float((best[:, 0] - best[:, 1]).min())


def make_llm(path: Path, **options: Any) -> LLM:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 64 * 2**20,
        "block_size": 8,
        "max_logprobs": 20,
    }
    return LLM(str(path), **(settings | options))


def greedy(prompt_logprobs: int | None = 1) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, prompt_logprobs=prompt_logprobs, detokenize=False
    )


def ask(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def run_alone(truth: Truth) -> Iterator[RequestOutput]:
    with make_llm(truth.path) as llm:
        for prompt in truth.prompts:
            yield ask(llm, [prompt], greedy())[0]


def run_batch(truth: Truth) -> Iterator[RequestOutput]:
    with make_llm(truth.path) as llm:
        yield from ask(llm, truth.prompts, greedy())


def run_chunked(truth: Truth) -> Iterator[RequestOutput]:
    with make_llm(truth.path, max_num_batched_tokens=16) as llm:
        yield from ask(llm, truth.prompts, greedy())


def run_preempted(truth: Truth) -> Iterator[RequestOutput]:
    # Room for about three of the longest requests in one group; more groups need more blocks for the same.
    decoder = load_decoder_config(truth.path)
    specs = [LayerKVSpec(1, 1, "float32", decoder.layer_window(index)) for index in range(decoder.num_layers)]
    num_blocks = 60 * len(group_layers(specs))
    with make_llm(truth.path, num_gpu_blocks_override=num_blocks, max_model_len=160) as llm:
        outputs = ask(llm, truth.prompts, greedy())
    assert sum(output.metrics.num_preemptions for output in outputs) > 0, "the cache is not small enough"
    yield from outputs


def run_prefix_hits(truth: Truth) -> Iterator[RequestOutput]:
    """The same prompts again on a warm cache. Prompt logprobs need every position computed, so they are asked first."""
    with make_llm(truth.path) as llm:
        first = ask(llm, truth.prompts, greedy())
        again = ask(llm, truth.prompts, greedy(prompt_logprobs=None))
        for prompt, cold, warm in zip(truth.prompts, first, again, strict=True):
            assert warm.num_cached_tokens == (len(prompt) - 1) // 8 * 8
            warm.prompt_logprobs = cold.prompt_logprobs
        yield from again


RUNS: dict[str, Callable[[Truth], Iterator[RequestOutput]]] = {
    "alone": run_alone,
    "batch": run_batch,
    "prefix-hits": run_prefix_hits,
    "chunked": run_chunked,
    "preempted": run_preempted,
}


@pytest.mark.parametrize("run", RUNS)
def test_tokens_and_prompt_logprobs_are_those_of_transformers(
    truth: Truth, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    outputs = list(RUNS[run](truth))
    assert len(outputs) == NUM_PROMPTS
    for index, output in enumerate(outputs):
        assert list(output.outputs[0].token_ids) == truth.tokens[index], f"prompt {index}"
        assert output.outputs[0].finish_reason == "length"
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        ours = [
            entry[token].logprob
            for entry, token in zip(output.prompt_logprobs[1:], truth.prompts[index][1:], strict=True)
            if entry is not None
        ]
        assert ours == pytest.approx(truth.prompt_logprobs[index], abs=1e-3)
