"""On a GPU: what profiling left is enough, what was taken is given back, what an error names works."""

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_engine import LLM, SamplingParams
from vllm_engine.config.device import first_gpu
from vllm_engine.errors import ConfigError
from vllm_engine.execution.devices import nvml

pytestmark = pytest.mark.gpu

GIB = 2**30
LEFT = 6 * GIB
"""What is left of the GPU beside a tensor that nobody needs, so that a cache fills all of it soon."""
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


@contextmanager
def engine(path: Path, **options: Any) -> Iterator[LLM]:
    (path / "config.json").write_text(json.dumps(CONFIG))
    with LLM(str(path), load_format="dummy", skip_tokenizer_init=True, **options) as llm:
        yield llm


@pytest.fixture
def little_left() -> Iterator[None]:
    """Most of the GPU is in use."""
    gc.collect()
    torch.cuda.empty_cache()
    filler = torch.empty(torch.cuda.mem_get_info()[0] - LEFT, dtype=torch.uint8, device="cuda")
    yield
    del filler
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_left")
@pytest.mark.parametrize("eager", [True, False])
def test_a_full_cache_and_a_full_step_fit_together(eager: bool, tmp_path: Path) -> None:
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    sampling = SamplingParams(
        top_p=0.9, top_k=50, repetition_penalty=1.1, logprobs=5, max_tokens=8, ignore_eos=True, detokenize=False
    )
    with engine(tmp_path, gpu_memory_utilization=1.0, enforce_eager=eager) as llm:
        blocks, block_size = llm.ready.num_kv_blocks, llm.ready.block_size
        length = 2048
        prompts = [
            {"prompt_token_ids": [(7 * place + number) % 31000 for place in range(length)]}
            for number in range(blocks * block_size // length + 2)
        ]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    assert all(len(output.outputs[0].token_ids) == 8 for output in outputs)
    assert torch.cuda.memory_stats().get("num_ooms", 0) == before


@pytest.mark.usefixtures("little_left")
def test_an_error_names_a_share_that_works_and_engines_give_all_back(tmp_path: Path) -> None:
    free = torch.cuda.mem_get_info()[0]
    options: dict[str, Any] = {"max_model_len": 1024, "max_num_batched_tokens": 2048, "max_num_seqs": 64}
    with (
        pytest.raises(ConfigError, match="no room for the KV cache") as caught,
        engine(tmp_path, gpu_memory_utilization=0.001, **options),
    ):
        pass
    share = re.findall(r": gpu_memory_utilization=([\d.]+)", str(caught.value))[0]
    with engine(tmp_path, gpu_memory_utilization=float(share), **options) as llm:
        assert llm.ready.num_kv_blocks > 1024 // 16
    del caught
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] > free - 256 * 2**20


def test_free_memory_can_be_asked_for_without_a_context() -> None:
    gpu = first_gpu()
    assert gpu is not None
    torch.zeros(1, device="cuda")
    free = nvml.free_bytes(gpu.bus_id, gpu.total)
    assert free == pytest.approx(torch.cuda.mem_get_info()[0], rel=0.02)
