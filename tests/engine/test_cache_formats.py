"""Keys and values in 8 bits: the cache holds more, and what the engine says stays close, however it came about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tests.engine.models.tiny import make_tiny_model
from tests.engine.test_parity import make_llm
from vllm_engine.errors import ConfigError
from vllm_engine.llm import LLM
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import SamplingParams

# Root mean square difference of log-probabilities from those of an fp32 cache, in models of random weights, whose
# log-probabilities spread by 3. Nearly all of it is the format's own: transformers has it, too, with such a cache.
ERROR = {
    "int8_per_token_head": 0.1,
    "fp8_per_token_head": 0.4,
    "fp8": 0.5,
    "fp8_e4m3": 0.5,
    "fp8_e5m2": 0.8,
}
SCALED = ("int8_per_token_head", "fp8_per_token_head")
FAMILIES = ["llama", "qwen3", "gemma3", "gpt2"]
PROMPTS = [
    [(17 * i + 31 * seed + i * i) % 250 + 4 for i in range(length)] for seed, length in enumerate((60, 9, 33, 77))
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(str(request.param))
    make_tiny_model(request.param, path)
    return path


def ask(llm: LLM, *, num_tokens: int = 8, prompt_logprobs: int | None = 0) -> list[RequestOutput]:
    params = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, prompt_logprobs=prompt_logprobs, detokenize=False
    )
    return llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)


def logprobs(outputs: Sequence[RequestOutput]) -> torch.Tensor:
    """Of all tokens of the prompts after their first."""
    found = [
        entry[token].logprob
        for output, prompt in zip(outputs, PROMPTS, strict=True)
        for entry, token in zip(output.prompt_logprobs or [], prompt, strict=True)
        if entry
    ]
    return torch.tensor(found)


def tokens(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def rounded(x: torch.Tensor, cache_format: str) -> torch.Tensor:
    """What is left of keys or values ``[..., head_dim]``."""
    if cache_format == "int8_per_token_head":
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale
    if cache_format == "fp8_per_token_head":
        scale = x.abs().amax(-1, keepdim=True) / 448
        return (x / scale).to(torch.float8_e4m3fn).float() * scale
    return x.to(torch.float8_e5m2 if cache_format == "fp8_e5m2" else torch.float8_e4m3fn).float()


class RoundingCache(DynamicCache):
    """A cache of transformers that keeps what a format leaves."""

    def __init__(self, cache_format: str) -> None:
        super().__init__()
        self.cache_format = cache_format

    def update(self, key_states: Any, value_states: Any, *args: Any, **options: Any) -> Any:
        kept = (rounded(x, self.cache_format) for x in (key_states, value_states))
        return super().update(*kept, *args, **options)


@torch.no_grad()
def theirs(folder: Path, cache_format: str) -> torch.Tensor:
    """Log-probabilities of the prompts by transformers with such a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        logits = model(ids, past_key_values=RoundingCache(cache_format), use_cache=True).logits[0, :-1]
        found.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0])
    return torch.cat(found)


@pytest.fixture(scope="module")
def exact(folder: Path) -> torch.Tensor:
    with make_llm(folder) as llm:
        return logprobs(ask(llm))


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


@pytest.mark.parametrize("cache_format", ERROR)
def test_an_8_bit_cache_changes_logprobs_by_what_its_format_takes(
    folder: Path, exact: torch.Tensor, cache_format: str
) -> None:
    with make_llm(folder, kv_cache_dtype=cache_format) as llm:
        ours = logprobs(ask(llm))
    error = difference(ours, exact)
    assert 0 < error < ERROR[cache_format]
    # A number at the border of two may be rounded the other way.
    assert difference(ours, theirs(folder, cache_format)) < 0.1 * error


@pytest.mark.parametrize("cache_format", SCALED)
def test_chunks_and_small_blocks_find_the_same_numbers(folder: Path, cache_format: str) -> None:
    with make_llm(folder, kv_cache_dtype=cache_format) as llm:
        whole = ask(llm)
    with make_llm(folder, kv_cache_dtype=cache_format, max_num_batched_tokens=16, block_size=4) as llm:
        chunked = ask(llm)
    assert torch.allclose(logprobs(whole), logprobs(chunked), atol=2e-4)
    assert tokens(whole) == tokens(chunked)


@pytest.mark.parametrize("cache_format", SCALED)
def test_a_cached_prefix_brings_its_scales(folder: Path, cache_format: str) -> None:
    with make_llm(folder, kv_cache_dtype=cache_format) as llm:
        cold, warm = ask(llm), ask(llm, prompt_logprobs=None)
    assert [output.num_cached_tokens for output in warm] == [(len(prompt) - 1) // 8 * 8 for prompt in PROMPTS]
    assert tokens(warm) == tokens(cold)


@pytest.mark.parametrize("cache_format", SCALED)
def test_preempted_requests_end_as_if_they_had_not_been(folder: Path, cache_format: str) -> None:
    with make_llm(folder, kv_cache_dtype=cache_format) as llm:
        undisturbed = ask(llm, num_tokens=30)
        groups = len(llm._running_client.core.limits.layout.groups)
    blocks = 1 + 20 * groups
    with make_llm(folder, kv_cache_dtype=cache_format, num_gpu_blocks_override=blocks, max_model_len=112) as llm:
        preempted = ask(llm, num_tokens=30)
    assert sum(output.metrics.num_preemptions for output in preempted) > 0, "the cache is not small enough"
    assert tokens(preempted) == tokens(undisturbed)


@pytest.mark.parametrize(("cache_format", "head_bytes"), [("fp8", 8), ("int8_per_token_head", 8 + 4)])
def test_the_same_memory_holds_more_tokens(tmp_path: Path, cache_format: str, head_bytes: int) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=2)  # heads of 8
    memory = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 2**19, "max_num_seqs": 999}
    with make_llm(tmp_path, **memory) as plain, make_llm(tmp_path, kv_cache_dtype=cache_format, **memory) as small:
        assert small.ready.num_kv_blocks == pytest.approx(32 / head_bytes * plain.ready.num_kv_blocks, rel=0.02)


# ---- layers that are left out ----


def error_of(path: Path, exact: torch.Tensor, **options: Any) -> float:
    with make_llm(path, **options) as llm:
        return difference(logprobs(ask(llm)), exact)


def test_skipped_layers_keep_the_models_data_type(tmp_path: Path) -> None:
    make_tiny_model("gemma3", tmp_path)  # sliding, sliding, full, sliding
    with make_llm(tmp_path) as llm:
        exact = logprobs(ask(llm))
    cache = {"kv_cache_dtype": "fp8_e5m2"}
    assert error_of(tmp_path, exact, **cache, kv_cache_dtype_skip_layers=["sliding_window", "2"]) < 1e-5
    all_layers = error_of(tmp_path, exact, **cache)
    one_layer = error_of(tmp_path, exact, **cache, kv_cache_dtype_skip_layers=["sliding_window"])
    assert 1e-4 < one_layer < all_layers
    with make_llm(tmp_path, **cache, kv_cache_dtype_skip_layers=["0", "2"]) as llm:
        assert llm._running_client.core.executor.worker._plan.cache_formats == (
            "float32",
            "fp8_e5m2",
            "float32",
            "fp8_e5m2",
        )


@pytest.mark.parametrize("wrong", ["4", "-1", "full", ""])
def test_a_layer_that_is_not_there_cannot_be_skipped(tmp_path: Path, wrong: str) -> None:
    make_tiny_model("gemma3", tmp_path)
    with pytest.raises(ConfigError, match="takes layers from 0 to 3 and 'sliding_window', got") as caught:
        make_llm(tmp_path, kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=["0", wrong])
    assert caught.value.field == "kv_cache_dtype_skip_layers"
