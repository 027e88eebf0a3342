"""Embeddings on their way to the core: which are refused, and what becomes of their values."""

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.config import EngineArgs
from vllm_engine.config.generation import GenerationConfig
from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend.input_processor import InputProcessor, PreparedRequest
from vllm_engine.frontend.prompt_embeds import read_prompt_embeds
from vllm_engine.frontend.prompts import parse_prompt
from vllm_engine.messages import EmbedsDtype, EmbedsSpec, PromptEmbeds
from vllm_engine.params import SamplingParams

WIDTH = 6
MAX_MODEL_LEN = 32
DTYPES: list[EmbedsDtype] = ["float32", "float16", "bfloat16"]


def prepare(value: Any, *, dtype: EmbedsDtype = "float32", **params: Any) -> PreparedRequest:
    inputs = InputProcessor(
        EngineArgs("demo").create_config(),
        tiny.load("byte_level"),
        GenerationConfig({}, ()),
        max_model_len=MAX_MODEL_LEN,
        vocab_size=350,
        prompt_embeds=EmbedsSpec(WIDTH, dtype),
    )
    return inputs.process("r", {"prompt_embeds": value}, SamplingParams(**params))


def rows(count: int = 4, **options: Any) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1)).to(**options)


class Subclass(torch.Tensor):
    pass


with warnings.catch_warnings(action="ignore"):  # torch's, of what is new or old there
    HOSTILE: dict[str, Any] = {
        "one dimension": torch.zeros(WIDTH),
        "three dimensions": torch.zeros(1, 4, WIDTH),
        "no dimension": torch.tensor(1.0),
        "too wide": torch.zeros(4, WIDTH + 1),
        "too narrow": np.zeros((4, WIDTH - 1), np.float32),
        "empty": torch.zeros(0, WIDTH),
        "no room for an output": torch.zeros(MAX_MODEL_LEN, WIDTH),
        "too long": torch.zeros(1, WIDTH).expand(10**9, WIDTH),
        "float64": rows(dtype=torch.float64),
        "float64 array": np.zeros((4, WIDTH)),
        "int": torch.zeros(4, WIDTH, dtype=torch.int32),
        "bool array": np.zeros((4, WIDTH), bool),
        "object array": np.full((4, WIDTH), None),
        "complex": torch.zeros(4, WIDTH, dtype=torch.complex64),
        "float8": torch.zeros(4, WIDTH).to(torch.float8_e4m3fn),
        "sparse": rows().to_sparse(),
        "sparse rows": rows().to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(rows(), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([rows()[0], rows()[1]]),
        "nowhere": torch.zeros(4, WIDTH, device="meta"),
        "subclass": rows().as_subclass(Subclass),
        "infinite": torch.full((4, WIDTH), torch.inf),
        "no number": torch.full((4, WIDTH), torch.nan, dtype=torch.bfloat16),
        "no number in half": np.full((4, WIDTH), np.nan, np.float16),
        "infinite bfloat16": torch.full((4, WIDTH), -torch.inf, dtype=torch.bfloat16),
        "list": [[0.0] * WIDTH],
        "text": "AAAA",
        "bytes": b"\0" * 96,
        "fewer bytes than its shape": PromptEmbeds(b"\0" * 95, (4, WIDTH), "float32"),
        "a type of its own": PromptEmbeds(b"\0" * 96, (4, WIDTH), "float8"),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_dense_finite_tensor_of_the_models_width_is_refused(what: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(HOSTILE[what])
    assert caught.value.field == "prompt_embeds"
    assert "0x" not in str(caught.value)


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    request = prepare(rows(MAX_MODEL_LEN - 1)).requests[0]
    assert request.max_tokens == 1
    assert request.prompt_token_ids == [0] * (MAX_MODEL_LEN - 1)
    assert len(prepare(rows(MAX_MODEL_LEN), truncate_prompt_tokens=5).prompt_token_ids) == 5


def test_what_needs_tokens_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(rows(), prompt_logprobs=1)
    assert caught.value.field == "prompt_logprobs"
    for also in ({"prompt": "a"}, {"prompt_token_ids": [1]}, {"prompt_token_ids": np.zeros(3)}):
        with pytest.raises(InvalidRequest, match="not both") as caught:
            parse_prompt({"prompt_embeds": rows(), **also})  # type: ignore[typeddict-item]
        assert caught.value.field == "prompt_embeds"
    assert parse_prompt({"prompt_embeds": None, "prompt": "a"}).text == "a"


# Values where rounding matters: ties, both sides of them, subnormal ones, the largest.
EDGES = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 1.0039064, 3.0e-5, 5.9e-8, 1e-40, 65504.0, -65519.0, 0.1]


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_values_are_converted_as_torch_does(given: EmbedsDtype, wanted: EmbedsDtype) -> None:
    values = torch.cat([torch.tensor(EDGES).view(-1, WIDTH), rows(20) * 100]).to(getattr(torch, given))
    if wanted == "float16":
        values = values.clamp(-65504, 65504).nan_to_num(posinf=1, neginf=-1)
        values[values.to(torch.float16).isinf()] = 1
    found = read_prompt_embeds(values, EmbedsSpec(WIDTH, wanted), max_model_len=MAX_MODEL_LEN)
    expected = values.to(getattr(torch, wanted)).contiguous().view(torch.uint8)
    assert (found.dtype, found.shape) == (wanted, (22, WIDTH))
    assert found.data == expected.numpy().tobytes()


def test_values_too_large_for_the_model_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="too large for the model's float16"):
        prepare(torch.full((1, WIDTH), 65520.0), dtype="float16")
    with pytest.raises(InvalidRequest, match="too large for the model's bfloat16"):
        prepare(torch.full((1, WIDTH), 3.4e38), dtype="bfloat16")


def test_whatever_lies_in_memory_the_same_rows_come_out() -> None:
    plain = rows()
    forms = [
        plain.t().contiguous().t(),
        torch.cat([plain, plain], 1)[:, :WIDTH],
        plain.clone().requires_grad_(),
        torch.nn.Parameter(plain),
        torch.view_as_complex(torch.stack([torch.zeros_like(plain), -plain], -1)).conj().imag,
        plain.numpy(),
        plain.numpy().astype(">f4"),
        np.asfortranarray(plain.numpy()),
        PromptEmbeds(plain.numpy().tobytes(), (4, WIDTH), "float32"),
    ]
    expected = prepare(plain).requests[0].prompt_embeds
    assert expected is not None and expected.digest
    assert all(prepare(form).requests[0].prompt_embeds == expected for form in forms)


def test_the_caller_may_go_on_with_the_tensor() -> None:
    plain = rows()
    embeds = prepare(plain).requests[0].prompt_embeds
    before = plain.numpy().tobytes()
    plain.zero_()
    assert embeds is not None and embeds.data == before


def test_arrays_need_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from vllm_engine.frontend.prompt_embeds import read_prompt_embeds\n"
        "from vllm_engine.messages import EmbedsSpec\n"
        "read_prompt_embeds(np.ones((2, 3), np.float32), EmbedsSpec(3, 'bfloat16'), max_model_len=9)\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
