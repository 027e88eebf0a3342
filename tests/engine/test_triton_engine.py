"""The engine on the Triton kernels, by Triton's interpreter where there is no GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.models.tiny import make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.backend import use_face

pytest.importorskip("triton")

from vllm_kernels.triton.device import interpreted
from vllm_kernels.triton.kernel import Kernel

ALLOCATIONS = ("empty", "new_empty", "empty_like")
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


class Asked(TorchDispatchMode):
    """What a device is asked for: kernels, and torch's operators but for views."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        self._is_inside = False
        launch = Kernel.launch

        def told(kernel, *arguments, **constants):
            self.names.append(kernel.name)
            self._is_inside = True  # the interpreter's own operators do not count
            launch(kernel, *arguments, **constants)
            self._is_inside = False

        monkeypatch.setattr(Kernel, "launch", told)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._is_inside and not func.is_view and func.__name__.split(".")[0] not in ALLOCATIONS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not interpreted(), reason="counts what the interpreter is asked for")
@pytest.mark.parametrize(
    "count, quantization, product",
    [
        (1, None, "one_row_kernel"),
        (3, None, "few_rows_kernel"),
        (3, "int4", "quantized_few_rows_kernel"),
        (3, "fp8", "few_rows_kernel"),
    ],
)
def test_a_layer_of_few_tokens_is_six_kernels(count, quantization, product, tmp_path, monkeypatch):
    """And with fp8 four that round activations, two of them norms."""
    make_tiny_model("qwen3", tmp_path, num_hidden_layers=2)
    asked, steps, decode = Asked(monkeypatch), [], CausalLM.forward

    def forward(self, ids, *rest):
        del asked.names[:]
        with asked:
            hidden = decode(self, ids, *rest)
        steps.append((len(ids), asked.names[:]))
        return hidden

    monkeypatch.setattr(CausalLM, "forward", forward)
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")  # as on a GPU, activations stay as they are
    monkeypatch.setattr("vllm_engine.config.model_plan._refuse_fp8_weights", lambda gpu: None)
    settings = {"max_model_len": 64, "max_num_seqs": 4, "kv_cache_memory_bytes": 2**20, "enforce_eager": True}
    settings |= {"dtype": "float32", "quantization": quantization, "skip_tokenizer_init": True}
    with use_face("triton"), LLM(str(tmp_path), **settings) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": [5, 9, 17]}] * count, params, use_tqdm=False)
    tokens, names = steps[-1]
    assert tokens == count
    layer = [product, "rope_kernel", "attention_kernel", product, product, product]
    if quantization == "fp8":
        normed, plain = ["norm_round_kernel", product], ["round_rows_kernel", product]
        layer = [*normed, "rope_kernel", "attention_kernel", *plain, *normed, *plain]
    embedding, rest = names[: -2 * len(layer) - 1], names[-2 * len(layer) - 1 :]
    assert rest == [*layer, *layer, "norm_kernel"]
    assert len(embedding) <= 2
