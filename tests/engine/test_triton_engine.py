"""The engine on the Triton kernels, by Triton's interpreter where there is no GPU."""

import pytest
import torch

from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_kernels.backend import use_face

pytest.importorskip("triton")

PROMPTS = [[5, 9, 17, 30, 4, 8, 21], [11], list(range(10, 43))]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_greedy_tokens_equal_those_of_transformers(family, tmp_path):
    model = make_tiny_model(family, tmp_path)
    with (
        use_face("triton"),
        LLM(
            str(tmp_path),
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=128,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            kv_cache_memory_bytes=16 * 2**20,
        ) as llm,
    ):
        params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = torch.tensor([prompt])
        true = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=6,
            max_new_tokens=6,
            eos_token_id=None,
            pad_token_id=0,
        )[0]
        assert output.outputs[0].token_ids == true[len(prompt) :].tolist()
