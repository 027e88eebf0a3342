"""``load_decoder_config`` reads what the hub has, in old and new spellings, and trusts nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_engine.config.decoder import (
    FULL,
    SLIDING,
    DecoderConfig,
    default_max_model_len,
    resolve_dtype,
)
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.families import FAMILIES
from vllm_engine.errors import ConfigError
from vllm_engine.layers.weights import WeightFormat
from vllm_engine.models.registry import MODELS, build_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GEMMA2 = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 5}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "n_ctx": 1024,
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(data: Any, overrides: dict[str, Any] | None = None) -> DecoderConfig:
        (tmp_path / "config.json").write_text(data if isinstance(data, str) else json.dumps(data))
        return load_decoder_config(tmp_path, overrides or {})

    return read


def test_every_architecture_that_can_be_read_can_be_built_and_the_other_way_round() -> None:
    assert FAMILIES.keys() == MODELS.keys()


def test_reading_a_configuration_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    code = (
        "import sys, pathlib; from vllm_engine.config.decoder_file import load_decoder_config;"
        "from vllm_engine.config.model_files import resolve_model;"
        "load_decoder_config(resolve_model(sys.argv[1]), {});"
        "sys.exit(' '.join({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_plain_llama_gets_the_defaults_that_hub_files_leave_out(read: Any) -> None:
    config = read(LLAMA)
    assert (config.head_dim, config.num_kv_heads, config.norm_eps, config.activation) == (16, 2, 1e-6, "silu")
    assert config.layer_types == (FULL, FULL)
    assert config.attention_scale == 0.25
    assert config.rope.rope_theta == 10000.0
    assert not (config.attention_bias or config.tie_word_embeddings or config.qk_norm)


def test_dtype_is_read_in_its_old_and_new_spelling(read: Any) -> None:
    assert read(LLAMA | {"torch_dtype": "float16"}).dtype == "float16"
    assert read(LLAMA | {"dtype": "bfloat16"}).dtype == "bfloat16"
    assert read(LLAMA).dtype is None


def test_end_tokens_may_be_one_or_many(read: Any) -> None:
    assert read(LLAMA | {"eos_token_id": 7}).eos_token_ids == (7,)
    assert read(LLAMA | {"eos_token_id": [7, 9]}).eos_token_ids == (7, 9)
    assert read(LLAMA).eos_token_ids == ()


def test_mistral_slides_over_4096_tokens_unless_the_file_says_otherwise(read: Any) -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert [read(mistral).layer_window(i) for i in range(2)] == [4096, 4096]
    assert read(mistral | {"sliding_window": None}).layer_window(0) is None
    assert read(mistral | {"sliding_window": 32}).layer_window(1) == 32


def test_qwen_slides_only_when_its_switch_is_on_and_only_in_upper_layers(read: Any) -> None:
    off = QWEN2 | {"sliding_window": 32, "max_window_layers": 1}
    assert read(off).layer_types == (FULL, FULL)
    on = read(off | {"use_sliding_window": True})
    assert [on.layer_window(0), on.layer_window(1)] == [None, 32]
    assert read(QWEN2 | {"use_sliding_window": True, "layer_types": [SLIDING, FULL]}).layer_window(0) == 4096


def test_gemma2_alternates_windows_and_can_switch_soft_caps_off_with_null(read: Any) -> None:
    config = read(GEMMA2)
    assert config.layer_types == (SLIDING, FULL, SLIDING, FULL, SLIDING)
    assert (config.attention_soft_cap, config.final_soft_cap, config.head_dim) == (50.0, 30.0, 256)
    assert config.attention_scale == 256**-0.5
    assert config.embedding_scale == 8.0
    assert read(GEMMA2 | {"attn_logit_softcapping": None}).attention_soft_cap is None


def test_the_text_part_of_a_multimodal_gemma3_is_read_with_the_defaults_it_leaves_out(read: Any) -> None:
    config = read(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "torch_dtype": "bfloat16",
            "eos_token_id": [1, 106],
            "vision_config": {"hidden_size": 1152},
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        }
    )
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262208, 8, 4, 256)
    assert (config.hidden_size, config.num_layers, config.tie_word_embeddings) == (2560, 34, True)
    assert [config.layer_window(i) for i in (0, 4, 5)] == [1024, 1024, None]
    assert (config.layer_rope(5).rope_type, config.layer_rope(5).rope_theta) == ("linear", 1e6)
    assert (config.layer_rope(0).rope_type, config.layer_rope(0).rope_theta) == ("default", 1e4)
    assert (config.dtype, config.eos_token_ids) == ("bfloat16", (1, 106))
    assert default_max_model_len(config) == 131072


def test_gpt2_has_learned_positions_and_an_inner_size_of_four_times_the_hidden_one(read: Any) -> None:
    config = read(GPT2)
    assert (config.hidden_size, config.intermediate_size, config.head_dim, config.rope) == (768, 3072, 64, None)
    assert read(GPT2 | {"n_inner": 100}).intermediate_size == 100
    assert read(GPT2 | {"scale_attn_weights": False}).attention_scale == 1.0
    assert default_max_model_len(config) == 1024


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_size", bad) for bad in (0, -64, "64", 64.5, True, [64], 2**40)),
        ("hidden_size", 66),
        ("num_hidden_layers", 10**6),
        ("num_key_value_heads", 3),
        ("vocab_size", None),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", "small"),
        ("hidden_act", "tanh"),
        ("hidden_act", 3),
        ("tie_word_embeddings", "yes"),
        ("torch_dtype", "float8_e4m3fn"),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, None]),
        ("rope_theta", -1.0),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"rope_type": "mrope", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0] * 7, "long_factor": [1.0] * 8}),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7 + [None]}),
        ("partial_rotary_factor", 0.01),
        ("partial_rotary_factor", 1.5),
        ("quantization_config", {"quant_method": "awq"}),
        ("architectures", None),
        ("architectures", "LlamaForCausalLM"),
        ("model_type", 5),
        ("text_config", [1]),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_key(read: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read(LLAMA | {key: value})
    named = {"rope_scaling": ("rope_", "factor"), "torch_dtype": ("dtype",)}.get(key, (key,))
    assert any(name in str(caught.value) for name in named)
    assert caught.value.field


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
def test_a_missing_value_is_refused_with_the_name_of_its_key(read: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        read({name: value for name, value in LLAMA.items() if name != key})


def test_values_that_contradict_each_other_are_refused(read: Any) -> None:
    with pytest.raises(ConfigError, match="sliding_window is not given"):
        read(GEMMA2 | {"sliding_window": None})
    with pytest.raises(ConfigError, match="sliding_window is not given"):
        read(QWEN2 | {"layer_types": [SLIDING, FULL]})
    with pytest.raises(ConfigError, match="layer_types"):
        read(QWEN2 | {"layer_types": [FULL]})
    with pytest.raises(ConfigError, match="n_embd"):
        read(GPT2 | {"n_head": 7})


def test_an_unknown_architecture_is_refused_with_the_supported_ones(read: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read(LLAMA | {"architectures": ["MambaForCausalLM"]})
    assert "MambaForCausalLM" in str(caught.value)
    assert all(name in str(caught.value) for name in FAMILIES)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "\xff\xfe", "[" * 100_000, '{"hidden_size": NaN}'])
def test_a_file_that_is_no_configuration_is_refused(read: Any, text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_decoder_config(tmp_path, {})


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 8},
        {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 8, "tie_word_embeddings": True},
        {"intermediate_size": 2**31 - 1},
    ],
)
def test_a_shape_that_no_machine_can_hold_is_refused(read: Any, sizes: dict[str, int]) -> None:
    weight_format = WeightFormat(torch.bfloat16, torch.device("cpu"))
    with pytest.raises(ConfigError, match="does not fit into memory"):
        build_model(read(LLAMA | {"hidden_size": 2**16} | sizes), weight_format, max_len=64)


def test_code_that_the_repository_brings_is_not_run(read: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    read(LLAMA | {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}})
    assert not (tmp_path / "ran").exists()


def test_overrides_win_over_the_file(read: Any) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    config = read(LLAMA, {"rope_scaling": scaling, "num_hidden_layers": 5})
    assert (config.num_layers, config.rope.rope_type) == (5, "yarn")
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": {}}
    assert read(nested, {"text_config": {"num_hidden_layers": 3}}).num_layers == 3
    assert read(nested, {"num_hidden_layers": 4}).num_layers == 4


def test_an_override_that_nothing_reads_is_refused(read: Any) -> None:
    with pytest.raises(ConfigError, match="does not read num_layers") as caught:
        read(LLAMA, {"num_layers": 5})
    assert caught.value.field == "hf_overrides"


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "dynamic", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 4096),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, 4096),
    ],
)
def test_the_default_length_counts_the_extension_of_the_context_once(read: Any, scaling: Any, expected: int) -> None:
    assert default_max_model_len(read(LLAMA | {"rope_scaling": scaling})) == expected


@pytest.mark.parametrize(
    ("requested", "checkpoint", "expected"),
    [
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "float16"),
        ("auto", "float32", "bfloat16"),
        ("auto", None, "bfloat16"),
        ("float", "bfloat16", "float32"),
        ("float32", "float32", "float32"),
        ("half", "bfloat16", "float16"),
    ],
)
def test_the_data_type_follows_the_checkpoint_unless_one_is_asked_for(
    read: Any, requested: str, checkpoint: str | None, expected: str
) -> None:
    assert resolve_dtype(requested, read(LLAMA | {"torch_dtype": checkpoint})) == expected


def test_gemma_in_float16_is_refused_and_never_chosen(read: Any) -> None:
    config = read(GEMMA2 | {"torch_dtype": "float16"})
    for requested in ("half", "float16"):
        with pytest.raises(ConfigError, match="65504"):
            resolve_dtype(requested, config)
    assert resolve_dtype("auto", config) == "bfloat16"


LOCAL_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
GEMMA3 = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 512,
    "rope_parameters": LOCAL_ROPE,
}


@pytest.mark.parametrize(
    ("overrides", "theta", "factor", "rope_type"),
    [
        ({}, 5e5, 2.0, "linear"),
        ({"rope_theta": 7e5}, 7e5, 2.0, "linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, 5e5, 3.0, "linear"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 9e5}}, 9e5, 3.0, "linear"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9e5}}, 9e5, 1.0, "default"),
        ({"rope_theta": 7e5, "rope_scaling": {"rope_type": "linear", "factor": 3.0}}, 7e5, 3.0, "linear"),
    ],
)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_an_overridden_rotary_embedding_wins_however_the_file_spells_it(
    read: Any, spelling: str, overrides: dict[str, Any], theta: float, factor: float, rope_type: str
) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    older = {"rope_scaling": scaling, "rope_theta": 5e5}
    newer = {"rope_parameters": scaling | {"rope_theta": 5e5}, "rope_scaling": None}
    rope = read(LLAMA | (older if spelling == "rope_scaling" else newer), overrides).rope
    assert (rope.rope_theta, rope.factor, rope.rope_type) == (theta, factor, rope_type)


@pytest.mark.parametrize(
    ("overrides", "thetas"),
    [
        ({}, (1e6, 2e4)),
        ({"rope_theta": 3e6}, (3e6, 2e4)),
        ({"rope_local_base_freq": 3e4}, (1e6, 3e4)),
        ({"text_config": {"rope_theta": 3e6}}, (3e6, 2e4)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, (1e6, 2e4)),
    ],
)
def test_an_overridden_base_is_that_of_its_kind_of_layer(
    read: Any, overrides: dict[str, Any], thetas: tuple[float, float]
) -> None:
    config = read(GEMMA3, overrides)
    assert (config.rope.rope_theta, config.local_rope.rope_theta) == thetas


def test_an_override_wins_over_an_older_name_in_the_file(read: Any) -> None:
    assert read(LLAMA | {"dtype": "float16"}, {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
    assert read(GPT2, {"hidden_size": 1536}).hidden_size == 1536


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_hidden_layers": 0},
        {"text_config": {"num_hidden_layers": "many"}},
        {"text_config": 3},
        {"hidden_size": None},
        {"num_attention_heads": 7},
        {"num_key_value_heads": 3},
        {"rope_theta": "far"},
        {"rope_scaling": {"rope_type": "yarn", "factor": -1}},
        {"rope_parameters": {"rope_type": "mrope"}},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": ["MambaForCausalLM"]},
        {"torch_dtype": "int8"},
    ],
)
def test_a_bad_override_is_blamed_and_not_the_file(read: Any, overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^hf_overrides") as caught:
        read(LLAMA, overrides)
    assert caught.value.field == "hf_overrides"


def test_the_file_is_blamed_for_its_own_values_beside_an_override(read: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config\.json: vocab_size") as caught:
        read(LLAMA | {"vocab_size": 0}, {"num_hidden_layers": 3})
    assert caught.value.field == "vocab_size"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantised with awq"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "quantised with NVFP4"),
        ({"quantization_config": {"bits": 8}}, "is quantised,"),
        ({"compression_config": {"format": "pack-quantized"}}, "quantised with pack-quantized"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantised with fp8"),
    ],
)
def test_a_quantised_checkpoint_is_refused_with_its_method_and_what_is_possible(
    read: Any, data: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"{named}.*possible: checkpoints in float32.*int8, int4 or fp8") as caught:
        read(LLAMA | data)
    assert caught.value.field == "quantization"


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_quantization_config_means_none(read: Any, empty: Any) -> None:
    assert read(LLAMA | {"quantization_config": empty}).num_layers == 2
