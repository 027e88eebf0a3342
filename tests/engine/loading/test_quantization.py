"""On-the-fly quantisation: the model that comes out is the checkpoint's with its projections rounded, and close to it.

How numbers are rounded is tested in ``tests/kernels``; here the reference's rounding goes into models of transformers.
"""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import vllm_engine.demo
from tests.engine.models.paged import PagedRun
from tests.engine.models.tiny import VOCAB_SIZE, make_tiny_model
from vllm_engine import LLM, SamplingParams
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.loading.loader import load_model
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.quantized_weight import Quantization
from vllm_kernels.reference.quantization import CanonicalWeight, rounded_activations

INT8 = Quantization(8, None, 8)
Scheme = Quantization | Literal["fp8"] | None
"""Of a layer; None: as it is."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
TOKENS = list(range(7, VOCAB_SIZE, 11))


def load(path: Path, quantization: str | None, dtype: Any = "float32") -> CausalLM:
    config = ModelConfig(model=str(path), dtype=dtype, max_model_len=128, quantization=quantization)
    return load_model(path, load_decoder_config(path, {}), config, LoadConfig(use_tqdm_on_load=False), "cpu")


def logits(model: CausalLM, tokens: list[int] = TOKENS) -> Tensor:
    return PagedRun(model, 1, max_len=len(tokens)).step({0: tokens})[0]


class Rounded(nn.Module):
    """A linear layer of transformers with the reference's rounding."""

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> None:
        super().__init__()
        self.scheme, self.bias, self.weight = scheme, bias, weight
        if isinstance(scheme, Quantization):
            if scheme.group_size is not None and scheme.group_size >= weight.shape[1]:
                self.scheme = scheme = Quantization(scheme.bits, None, scheme.activation_bits)
            rounded = CanonicalWeight(*weight.shape, torch.float32, scheme, gated=False)
            rounded.fill(weight)
            self.weight = rounded.rows(torch.arange(len(weight)))
        elif scheme == "fp8":
            self.weight = rounded_to_fp8(weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.scheme == "fp8":
            x = rounded_to_fp8(x)
        elif self.scheme is not None and self.scheme.activation_bits:
            x = rounded_activations(x.flatten(0, -2), self.scheme.activation_group).view_as(x)
        return nn.functional.linear(x, self.weight, self.bias)


def rounded_to_fp8(rows: Tensor) -> Tensor:
    """Rows as numbers of e4m3 with a scale each: the largest is 448."""
    scale = rows.abs().amax(-1, keepdim=True) / torch.tensor(448.0)
    return (rows / scale).to(torch.float8_e4m3fn).float() * scale


@torch.no_grad()
def rounded_logits(model: PreTrainedModel, scheme: Scheme) -> Tensor:
    """What transformers computes when its layers round as ``scheme`` says, the head as int8, or with fp8 not."""
    of_head = None if scheme == "fp8" else INT8
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | Conv1D):
                weight = child.weight.detach()
                weight = weight.t() if isinstance(child, Conv1D) else weight
                bias = None if child.bias is None else child.bias.detach()
                is_head = child is model.get_output_embeddings()
                setattr(module, name, Rounded(weight, bias, of_head if is_head else scheme))
    if model.config.get_text_config().tie_word_embeddings:
        model.get_input_embeddings().weight.copy_(model.lm_head.weight)
    result: Tensor = model(torch.tensor([TOKENS])).logits[0]
    return result


def deviation(result: Tensor, expected: Tensor) -> float:
    """Of the middle one of the tokens, relative to how far the logits are spread."""
    return float((result - expected).abs().mean(1).median() / expected.std())


@pytest.mark.parametrize(
    ("quantization", "w4a8", "scheme"),
    [
        ("int8", None, INT8),
        ("int4", None, Quantization(4, 128, 8)),
        ("int4", "0", Quantization(4, 128, None)),
        ("fp8", None, "fp8"),
    ],
    ids=["int8", "int4", "int4 by 16", "fp8"],
)
@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma3", "gpt2", "opt"])
def test_every_projection_is_rounded_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, quantization: str, w4a8: str | None, scheme: Any
) -> None:
    if w4a8 is not None:
        monkeypatch.setenv("VLLM_CPU_INT4_W4A8", w4a8)
    inner = {"opt": "ffn_dim", "gpt2": "n_inner"}.get(family, "intermediate_size")
    theirs = make_tiny_model(family, tmp_path, **{inner: 264})  # 264 columns are two groups of 128 and the rest
    with torch.no_grad():
        plain = theirs(torch.tensor([TOKENS])).logits[0]
    expected = rounded_logits(theirs, scheme)
    result = logits(load(tmp_path, quantization))
    # A sum in another order may round one activation the other way, which a few tokens after it see.
    assert deviation(result, expected) < 1e-5
    assert deviation(plain, expected) > 1e-2


# ---- the demo model: one that has learned something ----

PROMPTS = ["What is the capital of France?", "What is 7 times 8?", "Who are you?", "Tell me a story.", "Hello!"]


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Conversations with it: tokens that it chose itself in float32, after those of the prompt."""
    with LLM("demo", dtype="float32", max_model_len=160, kv_cache_memory_bytes=2**24) as llm:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in PROMPTS], GREEDY, use_tqdm=False)
    return [[*(output.prompt_token_ids or []), *output.outputs[0].token_ids] for output in outputs]


@pytest.mark.parametrize(
    ("quantization", "error", "same", "size"),
    [("int8", 0.02, 0.97, 0.55), ("int4", 0.1, 0.9, 0.35), ("fp8", 0.04, 0.93, 0.6)],
)
def test_a_quantised_model_is_close_to_the_unquantised_one(
    texts: list[list[int]], quantization: str, error: float, same: float, size: float
) -> None:
    folder = Path(vllm_engine.demo.__file__).parent
    plain, quantized = load(folder, None, "bfloat16"), load(folder, quantization, "bfloat16")
    assert quantized.weight_bytes() < size * plain.weight_bytes()
    expected = torch.cat([logits(plain, tokens) for tokens in texts]).log_softmax(-1)
    result = torch.cat([logits(quantized, tokens) for tokens in texts]).log_softmax(-1)
    best = expected.argmax(-1)
    assert (result - expected).gather(1, best[:, None]).abs().mean() < error
    assert (result.argmax(-1) == best).float().mean() > same


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_setting_reaches_the_weights_and_the_text_stays_mostly_the_same(
    texts: list[list[int]], quantization: str
) -> None:
    options: dict[str, Any] = {"max_model_len": 160, "kv_cache_memory_bytes": 2**24, "quantization": quantization}
    with LLM("demo", **options) as llm:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in PROMPTS], GREEDY, use_tqdm=False)
        model = llm._running_client.core.executor.worker.runner.model  # type: ignore[union-attr]
    assert {weight.scheme.bits for weight in model.linear_weights()} == {8, int(quantization[-1])}
    found = [[*(output.prompt_token_ids or []), *output.outputs[0].token_ids] for output in outputs]
    assert sum(text == expected for text, expected in zip(found, texts, strict=True)) >= 3
