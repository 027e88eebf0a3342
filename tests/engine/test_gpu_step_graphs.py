"""An engine on a GPU whose steps are replayed says what one without graphs says, and takes no memory for it later.

No step waits for the GPU while it is launched.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.execution.batch import ScheduledBatch
from vllm_engine.execution.launched import Launched
from vllm_engine.execution.model_runner import ModelRunner

pytestmark = pytest.mark.gpu

MODES = ("FULL_AND_PIECEWISE", "PIECEWISE", "FULL_DECODE_ONLY")
PROMPTS: list[Any] = [{"prompt_token_ids": list(range(5, 5 + length))} for length in (1, 3, 40, 17, 9)]


def make_llm(path: Path, **options: Any) -> LLM:
    settings: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 5, "kv_cache_memory_bytes": 2**26}
    return LLM(str(path), device="cuda", skip_tokenizer_init=True, max_model_len=256, **settings | options)


def answers(llm: LLM) -> list[tuple[list[int], list[float]]]:
    """Of requests that end one after the other, so that steps get smaller."""
    params = [
        SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, logprobs=0, detokenize=False)
        for length in (8, 12, 16, 20, 24)
    ]
    found = []
    for output in llm.generate(PROMPTS, params, use_tqdm=False):
        (answer,) = output.outputs
        chosen = zip(answer.token_ids, answer.logprobs or (), strict=True)
        found.append((list(answer.token_ids), [entry[token].logprob for token, entry in chosen]))
    return found


@pytest.mark.parametrize(
    ("family", "mode", "quantization"),
    [
        *((family, mode, None) for family in ("llama", "gemma3") for mode in MODES),
        ("llama", MODES[0], "fp8"),
        ("llama", MODES[0], "int4"),
    ],
)
def test_captured_steps_say_what_the_others_say(
    tmp_path: Path, family: str, mode: str, quantization: str | None
) -> None:
    if quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the GPU has no fp8")
    make_tiny_model(family, tmp_path)
    with make_llm(tmp_path, enforce_eager=True, quantization=quantization) as llm:
        truth = answers(llm)
    with make_llm(
        tmp_path,
        cudagraph_capture_sizes=[1, 2, 4, 8, 80],
        compilation_config={"cudagraph_mode": mode},
        quantization=quantization,
    ) as llm:
        for _ in range(2):
            for (tokens, logprobs), (true_tokens, true_logprobs) in zip(answers(llm), truth, strict=True):
                assert tokens == true_tokens
                assert logprobs == pytest.approx(true_logprobs, abs=1e-3)


def test_replays_take_no_more_memory(tmp_path: Path) -> None:
    make_tiny_model("qwen3", tmp_path)
    with make_llm(tmp_path) as llm:
        answers(llm)
        torch.cuda.synchronize()
        reserved = torch.cuda.memory_reserved()
        for _ in range(5):
            answers(llm)
        torch.cuda.synchronize()
        assert torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("eager", [True, False])
def test_no_step_waits_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    """torch raises where it would wait, but for events, and the requests of a step that raises end with an error."""
    launch = ModelRunner.launch

    def strictly(runner: ModelRunner, batch: ScheduledBatch) -> Launched:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(runner, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    make_tiny_model("gemma3", tmp_path)
    of_all_kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
        {"logit_bias": {3: 2.0}, "allowed_token_ids": [0, 3, 4], "min_tokens": 2},
        {"logprobs": 3, "prompt_logprobs": 2},
    ]
    params = [SamplingParams(**one, max_tokens=8, ignore_eos=True, detokenize=False) for one in of_all_kinds]
    monkeypatch.setattr(ModelRunner, "launch", strictly)
    with make_llm(tmp_path, enforce_eager=eager, max_num_batched_tokens=32) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * len(params)
