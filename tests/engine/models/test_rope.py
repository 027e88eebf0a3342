"""Every rotary table holds the cosines and sines that transformers computes for the same configuration."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from vllm_engine.config.families import read_family
from vllm_engine.config.rope import RopeConfig
from vllm_engine.layers.rotary import cos_sin_table, rope_frequencies

MAX_LEN = 3000
_SHAPE = {
    "vocab_size": 100,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_LLAMA_ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default, other base": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "yarn": _YARN,
    "yarn, not truncated": _YARN | {"truncate": False},
    "yarn, other turns": _YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, attention factor": _YARN | {"attention_factor": 0.7},
    "yarn, mscale": _YARN | {"mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn, one mscale is ignored": _YARN | {"mscale": 0.707},
    "yarn, zero mscale is ignored": _YARN | {"mscale": 0.0, "mscale_all_dim": 0.0},
    "yarn, short original": _YARN | {"original_max_position_embeddings": 8},
    "llama3": _LLAMA3,
    "llama3, other ramp": _LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 16.0},
}


def our_rope(architecture: str, values: dict[str, Any], layer_index: int = 0) -> RopeConfig:
    """Read like a ``config.json``."""
    data = {"architectures": [architecture], "model_type": "any", **values}
    return read_family(data, {}).layer_rope(layer_index)


def their_table(rotary: Any, max_len: int, **where: Any) -> torch.Tensor:
    """``[max_len, rotary_dim]``: transformers repeats each half."""
    cos, sin = rotary(torch.zeros(1), torch.arange(max_len)[None], **where)
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


@pytest.mark.parametrize("name", _LLAMA_ROPES)
def test_a_table_is_that_of_transformers(name: str) -> None:
    values = {**_SHAPE, "rope_parameters": _LLAMA_ROPES[name]}
    theirs = their_table(LlamaRotaryEmbedding(AutoConfig.for_model("llama", **values)), MAX_LEN)
    ours = cos_sin_table(our_rope("LlamaForCausalLM", values), MAX_LEN)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", _LLAMA_ROPES)
def test_the_older_spelling_gives_the_same_parameters(name: str) -> None:
    parameters = dict(_LLAMA_ROPES[name])
    new = our_rope("LlamaForCausalLM", {**_SHAPE, "rope_parameters": parameters})
    theta, kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
    scaling = {"type": kind, **parameters} if kind != "default" else None
    assert our_rope("LlamaForCausalLM", {**_SHAPE, "rope_theta": theta, "rope_scaling": scaling}) == new


@pytest.mark.parametrize("served", [100, 2048, 5000])
def test_dynamic_frequencies_are_those_of_transformers_for_the_longest_served_sequence(served: int) -> None:
    values = {**_SHAPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](AutoConfig.for_model("llama", **values), seq_len=served)
    ours, _ = rope_frequencies(our_rope("LlamaForCausalLM", values), served)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_dynamic_is_the_default_embedding_while_no_more_than_the_models_own_length_is_served() -> None:
    dynamic = {**_SHAPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    theirs = their_table(LlamaRotaryEmbedding(AutoConfig.for_model("llama", **dynamic)), 2048)
    torch.testing.assert_close(cos_sin_table(our_rope("LlamaForCausalLM", dynamic), 2048), theirs, atol=1e-6, rtol=0)
    assert torch.equal(
        cos_sin_table(our_rope("LlamaForCausalLM", dynamic), 2048),
        cos_sin_table(our_rope("LlamaForCausalLM", _SHAPE), 2048),
    )


@pytest.mark.parametrize("served", [200, 256, 257, 2000])
@pytest.mark.parametrize("attention_factor", [None, 1.7])
def test_longrope_uses_long_factors_when_more_than_the_original_length_is_served(
    served: int, attention_factor: float | None
) -> None:
    pairs = 24  # 64 channels of a head, three quarters of them rotated
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1 + 0.01 * i for i in range(pairs)],
        "long_factor": [1 + 0.3 * i for i in range(pairs)],
    }
    if attention_factor is not None:
        parameters["attention_factor"] = attention_factor
    values = {**_SHAPE, "original_max_position_embeddings": 256, "rope_parameters": parameters, "pad_token_id": 0}
    theirs = their_table(Phi3RotaryEmbedding(AutoConfig.for_model("phi3", **values)), served)
    ours = our_rope("Phi3ForCausalLM", values)
    assert ours.rotary_dim == 48
    torch.testing.assert_close(cos_sin_table(ours, served), theirs, atol=1e-6, rtol=0)


def test_phi3_reads_its_older_names_of_longrope() -> None:
    scaling = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    for name in ("su", "yarn", "longrope"):
        rope = our_rope("Phi3ForCausalLM", {**_SHAPE, "rope_scaling": {"type": name, **scaling}})
        assert (rope.rope_type, rope.original_max_position_embeddings) == ("longrope", 4096)


@pytest.mark.parametrize(
    "spelling",
    [
        {},
        {"rope_theta": 2e6, "rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            }
        },
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
    ],
)
def test_gemma3_rotates_its_local_and_global_layers_as_transformers_does(spelling: dict[str, Any]) -> None:
    values = {**_SHAPE, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}
    theirs = Gemma3RotaryEmbedding(Gemma3TextConfig(**values, **spelling))
    for index, kind in ((0, "sliding_attention"), (5, "full_attention")):
        ours = cos_sin_table(our_rope("Gemma3ForCausalLM", values | spelling, index), MAX_LEN)
        torch.testing.assert_close(ours, their_table(theirs, MAX_LEN, layer_type=kind), atol=1e-6, rtol=0)


def test_frequencies_and_attention_factor_are_those_of_the_functions_in_transformers() -> None:
    for name in ("linear", "yarn", "llama3"):
        values = {**_SHAPE, "rope_parameters": _LLAMA_ROPES[name]}
        expected, factor = ROPE_INIT_FUNCTIONS[name](AutoConfig.for_model("llama", **values))
        ours, our_factor = rope_frequencies(our_rope("LlamaForCausalLM", values), MAX_LEN)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
        assert our_factor == pytest.approx(factor, abs=1e-9)
