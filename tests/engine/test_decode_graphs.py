"""Replayed decode steps compute what the same steps compute call by call, bit for bit."""

import logging
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import FAMILIES, VARIANTS, make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.execution.graph_use import GraphUse
from vllm_kernels.backend import use_face

pytestmark = pytest.mark.cpu_only

Answers = list[tuple[list[int], list[float]]]


def make_llm(path: Path, **options: Any) -> LLM:
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 16 * 2**20,
        # The same steps each time: a prompt that is found in the cache is computed in a step of fewer tokens, and so
        # are its sums, which may be rounded otherwise.
        "enable_prefix_caching": False,
    }
    return LLM(str(path), **(settings | options))


def answers(llm: LLM, seed: int = 0) -> Answers:
    """Tokens and their logprobs of twelve requests for eight places, whose number changes as they end."""
    rng = random.Random(seed)
    prompts = [{"prompt_token_ids": [rng.randrange(5, 290) for _ in range(rng.choice((1, 7, 40)))]} for _ in range(12)]
    params = [
        SamplingParams(max_tokens=rng.randrange(3, 30), temperature=0.0, ignore_eos=True, logprobs=0, detokenize=False)
        for _ in prompts
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    found = []
    for output in outputs:
        (answer,) = output.outputs
        assert answer.logprobs is not None
        chosen = zip(answer.token_ids, answer.logprobs, strict=True)
        found.append((list(answer.token_ids), [entry[token].logprob for token, entry in chosen]))
    return found


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of sequences of all steps that are replayed."""
    sizes: list[int] = []
    count = GraphUse.count

    def counted(self: Any, kind: str, num_tokens: int, size: int) -> None:
        if kind == "FULL":
            sizes.append(num_tokens)
        count(self, kind, num_tokens, size)

    monkeypatch.setattr(GraphUse, "count", counted)
    return sizes


@pytest.mark.parametrize("family", FAMILIES + VARIANTS)
def test_every_family_is_replayed(tmp_path: Path, replays: list[int], family: str) -> None:
    make_tiny_model(family, tmp_path)
    with make_llm(tmp_path, enforce_eager=True) as llm:
        truth = answers(llm)
    assert replays == []
    with make_llm(tmp_path) as llm:
        assert answers(llm) == truth
        assert answers(llm) == truth
        sizes = set(replays)
        assert {1, 8} <= sizes


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "kv_cache_dtype": "fp8"},
        {"dtype": "bfloat16", "kv_cache_dtype": "int8_per_token_head", "quantization": "int8"},
        {"dtype": "float32", "quantization": "int4"},
        {"block_size": 5},
    ],
    ids=lambda options: " ".join(options.values()) if "block_size" not in options else "small blocks",
)
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_every_format_is_replayed(tmp_path: Path, replays: list[int], family: str, options: dict[str, Any]) -> None:
    make_tiny_model(family, tmp_path)
    with make_llm(tmp_path, enforce_eager=True, **options) as llm:
        truth = answers(llm)
    with make_llm(tmp_path, **options) as llm:
        assert answers(llm) == truth
    assert replays


def test_what_is_eager_is_not_replayed(tmp_path: Path, replays: list[int]) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with make_llm(tmp_path, enforce_eager=True) as llm:
        answers(llm)
    assert replays == []
    with make_llm(tmp_path) as llm:
        answers(llm)
    assert replays


def test_a_step_is_captured_again_for_another_number_of_threads(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    before = torch.get_num_threads()
    with make_llm(tmp_path) as llm:
        truth = answers(llm)
        try:
            torch.set_num_threads(1 + before % 2)
            assert answers(llm) == truth
        finally:
            torch.set_num_threads(before)


def test_what_cannot_be_captured_runs_call_by_call_and_the_log_says_why(
    tmp_path: Path, replays: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with use_face("eager"), caplog.at_level(logging.INFO), make_llm(tmp_path) as llm:
        captured = answers(llm)
    with use_face("eager"), make_llm(tmp_path, enforce_eager=True) as llm:
        assert answers(llm) == captured
    assert replays == []
    assert sum("without graphs" in record.message for record in caplog.records) == 1


def test_engines_in_several_threads_capture_only_their_own_calls(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path)
    with make_llm(tmp_path, enforce_eager=True) as llm:
        truths = [answers(llm, seed) for seed in range(3)]
    found: dict[int, list[Answers]] = {}

    def work(seed: int) -> None:
        with make_llm(tmp_path) as llm:
            found[seed] = [answers(llm, seed) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: [truth] * 3 for seed, truth in enumerate(truths)}
