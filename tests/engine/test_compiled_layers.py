"""What torch compiles between kernels computes what it did before."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.config import EngineArgs
from vllm_engine.config.compiler import compiler_backend
from vllm_engine.errors import ConfigError
from vllm_engine.execution.compiled_layers import CompiledLayers

GREEDY = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, logprobs=0, detokenize=False)
PROMPTS: list[Any] = [{"prompt_token_ids": [5, 9, 17, 30, 4, 8, 21]}, {"prompt_token_ids": [11]}]


def answers(model: Path, **options: Any) -> list[Any]:
    settings = {"skip_tokenizer_init": True, "max_model_len": 64, "kv_cache_memory_bytes": 2**20, "dtype": "float32"}
    with LLM(str(model), **settings, **options) as llm:
        return [output.outputs[0] for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def test_a_compiled_model_says_the_same_and_start_up_tells_what_was_compiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model("gemma3", tmp_path, num_hidden_layers=2)
    truth = answers(tmp_path)
    with caplog.at_level(logging.INFO):
        found = answers(tmp_path, compilation_config={"mode": 1, "backend": "eager"})
    assert [output.token_ids for output in found] == [output.token_ids for output in truth]
    assert [output.logprobs for output in found] == [output.logprobs for output in truth]
    (line,) = (record.getMessage() for record in caplog.records if "torch.compile" in record.message)
    assert line.startswith("torch.compile (eager): ")
    assert not line.startswith("torch.compile (eager): 0 graphs")


def test_who_asks_for_it_gets_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)

    def backend(device: str, **options: Any) -> str | None:
        return compiler_backend(EngineArgs("demo", device=device, **options).create_config())

    assert backend("cpu") is backend("cuda") is backend("cpu", optimization_level=3) is None
    assert [backend("cuda", optimization_level=level) for level in range(4)] == [None, None, None, "inductor"]
    assert backend("cuda", optimization_level=3, compilation_config={"mode": 0}) is None
    for device in ("cpu", "cuda"):
        assert backend(device, compilation_config={"mode": 1}) == "inductor"
        assert backend(device, compilation_config={"mode": 1, "backend": "eager"}) == "eager"
        assert backend(device, compilation_config={"mode": 1}, enforce_eager=True) is None
        with pytest.raises(ConfigError, match=r"mode=3 cannot be honoured: .*possible: unset, 0, 1"):
            backend(device, compilation_config={"mode": 3})
        with pytest.raises(ConfigError, match=r"cache_dir needs compilation_config\.mode=1"):
            backend(device, compilation_config={"cache_dir": "/tmp/x"})


def test_inductor_is_told_where_to_keep_what_it_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")

    class Model:
        def decode(self) -> None: ...

    CompiledLayers(Model(), "inductor", str(tmp_path))  # type: ignore[arg-type]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
