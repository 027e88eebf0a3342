"""In bf16 the engine is no further from the truth than ``transformers`` in bf16, and differs from it at ties only.

The truth is ``transformers`` in float32 with the same bf16 weights. Along each text that the engine writes greedily,
the log-probabilities of all tokens are compared at every position of the prompt (computed together) and of the answer
(computed one by one). ``python -m pytest -s tests/engine/test_bf16_agreement.py`` prints the figures, and those of
weights and caches in 8 and 4 bits.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import vllm_engine.demo
from tests.engine.models.tiny import FAMILIES, make_tiny_model
from vllm_engine import LLM, RequestOutput, SamplingParams
from vllm_kernels.describe import cpu_kernels

NUM_PROMPTS = 10
NUM_TOKENS = 24
VOCAB_SIZE = 149
SPREAD = 3.0
"""Standard deviation of the logits of one position. The weights of the layers are drawn smaller than those of other
tests, so that errors do not grow from layer to layer; logits would then be nearly flat, which would hide errors and
make a tie of every choice. So the last norm is scaled: as in a trained model, a few tokens have most of the
probability."""
LAST_NORM = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm"}
QUANTIZED_TEXTS = 3
"""Texts that are also computed with rounded weights or caches."""
DEMO_CHATS = ["What is the capital of France?", "Tell me a story."]

RMS_FACTOR, LARGEST_FACTOR = 1.1, 1.5
"""How much larger our error may be than that of transformers. Measured with several prompts and levels of the
kernels: at most 0.93 and 1.3."""
MODES: dict[str, tuple[dict[str, Any], float]] = {
    "int8": ({"quantization": "int8"}, 0.1),
    "int4": ({"quantization": "int4"}, 0.7),
    "int8 KV": ({"kv_cache_dtype": "int8_per_token_head"}, 0.05),
    "fp8 KV": ({"kv_cache_dtype": "fp8"}, 0.15),
}
"""Options of ``LLM``, and the largest root mean square error as a part of the logits' spread."""


@dataclass
class Model:
    """A folder with bf16 weights, prompts, and the texts of prompt and answer that the engine made of them."""

    path: Path
    exact: PreTrainedModel
    rounded: PreTrainedModel
    prompts: list[list[int]]

    def __post_init__(self) -> None:
        outputs = self.ask(self.prompts, NUM_TOKENS)
        self.texts = [
            [*prompt, *output.outputs[0].token_ids] for prompt, output in zip(self.prompts, outputs, strict=True)
        ]
        self.ours = [logprobs(output) for output in outputs]
        self.theirs = [self.teacher_forced(self.rounded, text) for text in self.texts]
        self.truth = [self.teacher_forced(self.exact, text) for text in self.texts]

    def ask(self, prompts: list[list[int]], num_tokens: int, **options: Any) -> list[RequestOutput]:
        """Greedy answers with the log-probabilities of all tokens at all positions."""
        params = SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, prompt_logprobs=-1, logprobs=-1, detokenize=False
        )
        settings = {"max_model_len": 128, "max_num_seqs": NUM_PROMPTS, "kv_cache_memory_bytes": 2**25}
        with LLM(str(self.path), skip_tokenizer_init=True, max_logprobs=-1, **settings, **options) as llm:
            return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    @staticmethod
    @torch.no_grad()
    def teacher_forced(model: PreTrainedModel, text: list[int]) -> Tensor:
        """Log-probabilities ``[len(text) - 1, vocab]`` of what follows each token but the last."""
        logits: Tensor = model(torch.tensor([text[:-1]])).logits[0]
        return logits.float().log_softmax(-1)


def logprobs(output: RequestOutput) -> Tensor:
    """``[positions, vocab]`` of all positions of prompt and answer but the first."""
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    positions = [entry for entry in (*output.prompt_logprobs, *output.outputs[0].logprobs) if entry is not None]
    return torch.tensor([[entry[token].logprob for token in range(len(entry))] for entry in positions])


@dataclass
class Error:
    """Of log-probabilities, over all tokens of all positions."""

    rms: float
    largest: float

    @classmethod
    def of(cls, found: list[Tensor], truth: list[Tensor]) -> "Error":
        difference = torch.cat(found).double() - torch.cat(truth).double()
        return cls(difference.square().mean().sqrt().item(), difference.abs().max().item())

    def __str__(self) -> str:
        return f"{self.rms:.4f}, {self.largest:.2f}"


def random_model(family: str, path: Path) -> list[list[int]]:
    """Write a model of 256 channels to ``path`` in bf16 and return prompts for it."""
    options: dict[str, Any] = {"vocab_size": VOCAB_SIZE, ("n_embd" if family == "gpt2" else "hidden_size"): 256}
    if family == "gpt2":
        options |= {"n_inner": 640, "n_head": 8, "initializer_range": 0.13}
    elif family == "opt":
        options |= {"ffn_dim": 640, "num_attention_heads": 8, "init_std": 0.13}
    else:
        options |= {"intermediate_size": 640, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
        options |= {"initializer_range": 0.09}
    model = make_tiny_model(family, path, **options)
    rng = random.Random(family)
    lengths = [1, 2, 17, *(rng.randrange(3, 56) for _ in range(NUM_PROMPTS - 3))]
    prompts = [[rng.randrange(4, VOCAB_SIZE) for _ in range(length)] for length in lengths]
    widen(model, max(prompts, key=len))
    model.to(torch.bfloat16).save_pretrained(path)
    return prompts


@torch.no_grad()
def widen(model: PreTrainedModel, prompt: list[int]) -> None:
    """Scale the last norm so that logits have a standard deviation of ``SPREAD``, if no cap holds them."""
    norm = model.get_submodule(LAST_NORM.get(model.config.model_type, "model.norm"))
    factor = SPREAD / model(torch.tensor([prompt])).logits.std(-1).mean().item()
    shift = 1.0 if model.config.model_type.startswith("gemma") else 0.0  # their norms multiply by 1 + weight
    for parameter in norm.parameters():
        parameter.copy_((parameter + shift) * factor - shift)


def demo_prompts() -> list[list[int]]:
    with LLM("demo", max_model_len=64, kv_cache_memory_bytes=2**24) as llm:
        chats = [[{"role": "user", "content": chat}] for chat in DEMO_CHATS]
        outputs = llm.chat(chats, SamplingParams(max_tokens=1), use_tqdm=False)
    return [list(output.prompt_token_ids or []) for output in outputs]


# Mistral is Llama with a window, which Gemma has as well.
@pytest.fixture(scope="module", params=[*(name for name in FAMILIES if name != "mistral"), "demo"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "demo":
        path = Path(vllm_engine.demo.__file__).parent
        prompts = demo_prompts()
    else:
        path = tmp_path_factory.mktemp(str(request.param))
        prompts = random_model(request.param, path)
    exact = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return Model(path, exact, AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16), prompts)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    names = ["ours", "transformers", "same choice", "largest tie", *MODES]
    head = [f"error of log-probabilities, root mean square and largest; {cpu_kernels()}", f"| | {' | '.join(names)} |"]
    print("", *head, f"|{' --- |' * (len(names) + 1)}", *rows, sep="\n")


def test_errors_are_those_of_rounding_and_choices_differ_at_ties_only(
    request: pytest.FixtureRequest, model: Model, table: list[str]
) -> None:
    """Measures first and judges last, so that a family that fails has its row in the table, too."""
    ours, theirs = Error.of(model.ours, model.truth), Error.of(model.theirs, model.truth)
    choices, ties, same = 0, [0.0], 0
    for prompt, text, other, truth in zip(model.prompts, model.texts, model.theirs, model.truth, strict=True):
        for position in range(len(prompt) - 1, len(text) - 1):
            mine, their = text[position + 1], int(other[position].argmax())
            choices += 1
            same += mine == their
            ties.append(abs(truth[position, mine] - truth[position, their]).item())
    spread = torch.cat(model.truth).std(-1).mean().item()
    truth = model.truth[:QUANTIZED_TEXTS]
    cells, too_far = [], {}
    for mode, (options, limit) in MODES.items():
        outputs = model.ask([text[:-1] for text in model.texts[:QUANTIZED_TEXTS]], 1, **options)
        error = Error.of([logprobs(output) for output in outputs], truth)
        cells.append(str(error))
        if error.rms > limit * spread:
            too_far[mode] = error
    row = [request.node.callspec.id, str(ours), str(theirs), f"{same} of {choices}", f"{max(ties):.2f}", *cells]
    table.append(f"| {' | '.join(row)} |")
    assert ours.rms <= RMS_FACTOR * theirs.rms
    assert ours.largest <= LARGEST_FACTOR * theirs.largest
    # What the truth tells apart by more than both may err is the same choice.
    assert max(ties) <= ours.largest + theirs.largest
    assert too_far == {}
