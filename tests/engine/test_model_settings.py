"""Settings of model, cache and kernels change what the engine computes with, and not what it says."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.llm import LLM
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import SamplingParams
from vllm_kernels import backend
from vllm_kernels.cpu import attention as cpu_attention
from vllm_kernels.cpu import norm as cpu_norm
from vllm_kernels.eager import attention as eager_attention
from vllm_kernels.reference import attention as reference_attention
from vllm_kernels.reference import norm as reference_norm

PROMPT = [5, 17, 250, 3, 99, 42, 7, 8, 200]
NUM_TOKENS = 8


def make_llm(path: Path, **options: Any) -> LLM:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_num_seqs": 2,
        "block_size": 8,
        "num_gpu_blocks_override": 65,
    }
    return LLM(str(path), **(settings | options))


def ask(llm: LLM, prompt: list[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> RequestOutput:
    params = SamplingParams(
        temperature=0.0, max_tokens=num_tokens, ignore_eos=True, prompt_logprobs=0, detokenize=False
    )
    return llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0]


def tokens(llm: LLM, prompt: list[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> list[int]:
    return list(ask(llm, prompt, num_tokens).outputs[0].token_ids)


def logprobs(output: RequestOutput) -> torch.Tensor:
    """Of the prompt's tokens after the first."""
    entries = [entry for entry in output.prompt_logprobs or [] if entry]
    return torch.tensor([entry[token].logprob for entry, token in zip(entries, PROMPT[1:], strict=True)])


@torch.no_grad()
def true_tokens(model: PreTrainedModel, prompt: list[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, **settings)
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def true_logprobs(model: PreTrainedModel) -> torch.Tensor:
    logits = model(torch.tensor([PROMPT])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]


@contextlib.contextmanager
def counted(function: str, *modules: Any) -> Iterator[dict[str, int]]:
    """How often a function of each module is called inside the block, by the name of its face."""
    counts = {module.__name__.split(".")[1]: 0 for module in modules}

    def counting(face: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            counts[face] += 1
            return real(*args)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for face, module in zip(counts, modules, strict=True):
            patch.setattr(module, function, counting(face, getattr(module, function)))
        yield counts


# ---- kernels ----


@pytest.mark.cpu_only
@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("options", "environment", "face"),
    [
        ({}, None, "cpu"),
        ({"attention_backend": "CPU_ATTN"}, None, "cpu"),
        ({"attention_backend": "torch_sdpa"}, "REFERENCE", "eager"),
        ({"attention_backend": "REFERENCE"}, None, "reference"),
        ({"attention_config": {"backend": "reference"}}, None, "reference"),
        ({}, "reference", "reference"),
    ],
)
def test_the_attention_backend_computes_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], environment: str | None, face: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", environment)
    truth = make_tiny_model("llama", tmp_path, num_hidden_layers=2)
    with (
        counted("paged_attention", cpu_attention, eager_attention, reference_attention) as calls,
        make_llm(tmp_path, **options) as llm,
    ):
        assert tokens(llm) == true_tokens(truth)
    assert {name for name, count in calls.items() if count} == {face}


@pytest.mark.cpu_only
def test_two_engines_in_one_process_have_each_its_own_kernels(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with make_llm(tmp_path, attention_backend="REFERENCE") as plain, make_llm(tmp_path) as fast:
        for llm, face in ((plain, "reference"), (fast, "cpu"), (plain, "reference")):
            with counted("paged_attention", cpu_attention, reference_attention) as calls:
                tokens(llm)
            assert {name for name, count in calls.items() if count} == {face}


@pytest.mark.cpu_only
def test_kernels_that_the_environment_forces_win_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    monkeypatch.setenv("VLLM_KERNELS_FACE", "cpu")
    backend._from_environment.cache_clear()
    with (
        counted("paged_attention", cpu_attention, reference_attention) as calls,
        make_llm(tmp_path, attention_backend="REFERENCE") as llm,
    ):
        tokens(llm)
    monkeypatch.undo()
    backend._from_environment.cache_clear()
    assert calls["cpu"] > 0 == calls["reference"]
    assert "VLLM_KERNELS_FACE=cpu wins: attention is not computed by the reference kernels" in caplog.text


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("priority", "rms", "fused"),
    [
        ({}, "cpu", "cpu"),
        ({"rms_norm": ["reference", "cpu"]}, "reference", "cpu"),
        ({"rms_norm": ["cpu"], "fused_add_rms_norm": ["native"]}, "cpu", "reference"),
    ],
)
def test_the_first_implementation_of_a_priority_computes_the_norm(
    tmp_path: Path, priority: dict[str, Any], rms: str, fused: str
) -> None:
    truth = make_tiny_model("gemma3", tmp_path)  # one that uses both functions
    for function, face in (("rms_norm", rms), ("fused_add_rms_norm", fused)):
        with (
            counted(function, cpu_norm, reference_norm) as calls,
            make_llm(tmp_path, ir_op_priority=priority, max_model_len=64) as llm,
        ):
            assert tokens(llm) == true_tokens(truth)
        assert calls[face] > 0
        if function == "fused_add_rms_norm":  # the other one is also called by this one
            assert {name for name, count in calls.items() if count} == {face}


# ---- data types ----


@pytest.mark.parametrize(("cache", "tolerance"), [("bfloat16", 0.3), ("float16", 0.03)])
def test_a_cache_of_another_data_type_holds_more_and_says_nearly_the_same(
    tmp_path: Path, cache: str, tolerance: float
) -> None:
    truth = make_tiny_model("llama", tmp_path, num_hidden_layers=2)
    memory = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 2**18, "max_model_len": 128, "max_num_seqs": 99}
    with make_llm(tmp_path, **memory) as whole, make_llm(tmp_path, kv_cache_dtype=cache, **memory) as half:
        assert half.ready.num_kv_blocks >= 2 * whole.ready.num_kv_blocks - 1
        differences = [(logprobs(ask(llm)) - true_logprobs(truth)).abs().max().item() for llm in (whole, half)]
    assert differences[0] < 1e-4 < differences[1] < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("half", 0.1), ("bfloat16", 0.6)])
def test_a_model_runs_in_the_data_type_that_is_asked_for(tmp_path: Path, dtype: str, tolerance: float) -> None:
    truth = make_tiny_model("llama", tmp_path, num_hidden_layers=2)
    with make_llm(tmp_path, dtype=dtype) as llm:
        difference = (logprobs(ask(llm)) - true_logprobs(truth)).abs().max().item()
    assert 1e-4 < difference < tolerance


def test_dummy_weights_follow_the_seed(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    texts = []
    for seed in (1, 1, 2):
        with make_llm(tmp_path, load_format="DUMMY", seed=seed) as llm:
            texts.append(logprobs(ask(llm)).tolist())
    assert texts[0] == texts[1] != texts[2]


# ---- lengths ----


@pytest.mark.parametrize("family", ["llama", "llama-dynamic", "phi3-longrope"])
@pytest.mark.parametrize("spelling", ["auto", -1])
def test_an_automatic_length_is_what_the_cache_holds_and_changes_no_token(
    tmp_path: Path, family: str, spelling: Any, caplog: pytest.LogCaptureFixture
) -> None:
    truth = make_tiny_model(family, tmp_path)
    with (
        caplog.at_level(logging.INFO, logger="vllm_engine"),
        make_llm(tmp_path, max_model_len=spelling, num_gpu_blocks_override=8) as llm,
    ):
        assert llm.ready.max_model_len == 7 * 8  # block 0 is nobody's
        prompt = list(range(3, 43))
        # Below 64 tokens, transformers takes the short factors of longrope: tables for 512 would have the long ones.
        assert tokens(llm, prompt, 16) == true_tokens(truth, prompt, 16)
        with pytest.raises(InvalidRequest, match="takes 56"):
            ask(llm, [1] * 56)
    assert "max_model_len auto: 56 tokens fit into" in caplog.text
    assert "KV cache, of the model's" in caplog.text


def test_an_automatic_length_is_the_models_own_where_there_is_room(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with make_llm(tmp_path, max_model_len="auto") as llm:
        assert llm.ready.max_model_len == 512


def test_an_automatic_length_of_prompts_in_one_piece_is_no_more_than_a_step(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    settings = {"max_model_len": "auto", "enable_chunked_prefill": False}
    with make_llm(tmp_path, max_num_batched_tokens=100, **settings) as llm:
        assert llm.ready.max_model_len == 100
    with make_llm(tmp_path, num_gpu_blocks_override=5, **settings) as llm:
        assert llm.ready.max_model_len == 32


def test_an_automatic_length_with_windows_counts_the_blocks_that_a_request_holds_at_once(tmp_path: Path) -> None:
    truth = make_tiny_model("gemma3", tmp_path)
    with make_llm(tmp_path, max_model_len="auto", num_gpu_blocks_override=40, max_num_batched_tokens=16) as llm:
        longest = llm.ready.max_model_len
        num_blocks = llm.ready.num_kv_blocks - 1
        prompt = [3 + i % 250 for i in range(longest - 4)]
        assert tokens(llm, prompt, 4) == true_tokens(truth, prompt, 4)
    with pytest.raises(ConfigError, match=f"lower max_model_len to {longest} "):
        make_llm(tmp_path, max_model_len=longest + 1, num_gpu_blocks_override=40, max_num_batched_tokens=16)
    assert num_blocks == 39 and 8 < longest < 512


def test_without_a_length_a_cache_too_small_names_one_that_works_and_auto(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"lower max_model_len to 56 \(or to auto\)"):
        make_llm(tmp_path, num_gpu_blocks_override=8)
    with make_llm(tmp_path, num_gpu_blocks_override=8, max_model_len=56) as llm:
        assert llm.ready.max_model_len == 56


def test_a_length_beyond_the_models_positions_must_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    truth = make_tiny_model("llama", tmp_path, num_hidden_layers=1, max_position_embeddings=32)
    with pytest.raises(
        ConfigError, match=r"33 is more than the 32 positions.*VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
    ) as error:
        make_llm(tmp_path, max_model_len=33)
    assert error.value.field == "max_model_len"
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    prompt = list(range(3, 43))
    with make_llm(tmp_path, max_model_len=64) as llm:
        assert tokens(llm, prompt) == true_tokens(truth, prompt)
    assert caplog.text.count("may become nonsense") == 1


def test_no_one_can_allow_positions_that_were_not_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    make_tiny_model("gpt2", tmp_path, n_positions=32)
    with pytest.raises(ConfigError, match=r"33 is more than the 32 positions of the model$"):
        make_llm(tmp_path, max_model_len=33)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_without_sliding_windows_every_layer_sees_all_of_one_window(tmp_path: Path, family: str) -> None:
    truth = make_tiny_model(family, tmp_path)
    window = truth.config.sliding_window
    prompt = list(range(3, 3 + window - 5))
    with make_llm(tmp_path, disable_sliding_window=True, max_model_len="auto") as llm:
        assert llm.ready.max_model_len == window
        core = llm._client._core
        assert [group.sliding_window for group in core.limits.layout.groups] == [None]
        assert tokens(llm, prompt, 5) == true_tokens(truth, prompt, 5)
    with make_llm(tmp_path, disable_sliding_window=True) as llm:
        assert llm.ready.max_model_len == window
    with pytest.raises(ConfigError, match=f"more than the {window} tokens of the model's sliding window") as error:
        make_llm(tmp_path, disable_sliding_window=True, max_model_len=window + 1)
    assert error.value.field == "max_model_len"


def test_a_model_without_windows_is_as_long_as_before(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path, num_hidden_layers=1)
    with make_llm(tmp_path, disable_sliding_window=True) as llm:
        assert llm.ready.max_model_len == 512
        assert not math.isnan(logprobs(ask(llm)).sum())
