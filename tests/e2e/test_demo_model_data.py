"""The files of the embedded demo model: size, config, weights, tokenizer and chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "packages" / "vllm-engine" / "vllm_engine" / "demo"
PROMPTS = Path(__file__).with_name("demo_prompts.json")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather — now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_SYSTEM = (
    "# Tools\n\nYou can call these functions:\n<tools>\n"
    '{"type": "function", "function": {"name": "get_weather", "description": "Look up the weather — now", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
    '\n</tools>\n\nTo call one, answer with:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)


def _json(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEMO / name).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_all_files_are_small() -> None:
    names = {p.name for p in DEMO.iterdir() if p.is_file()}
    assert names >= {
        "README.md", "__init__.py", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(p.stat().st_size for p in DEMO.iterdir() if p.is_file()) <= 12_000_000


def test_config_is_qwen3(tokenizer: Any) -> None:
    config = _json("config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 2048
    assert config["rope_theta"] == 10000.0
    assert config["vocab_size"] == len(tokenizer)
    read = transformers.AutoConfig.from_pretrained(DEMO)
    assert type(read).__name__ == "Qwen3Config"
    assert read.rope_parameters["rope_theta"] == 10000.0


def test_generation_stops_at_the_end_of_a_turn(tokenizer: Any) -> None:
    generation = _json("generation_config.json")
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == ids
    assert generation["pad_token_id"] == ids[1]
    assert generation["do_sample"] is False
    assert _json("config.json")["eos_token_id"] == ids[0]


def test_weights_are_bfloat16_and_fit_the_config() -> None:
    config = _json("config.json")
    with safetensors.safe_open(DEMO / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    hidden, head = config["hidden_size"], config["head_dim"]
    assert shapes["model.embed_tokens.weight"] == (config["vocab_size"], hidden)
    assert "lm_head.weight" not in shapes
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}.self_attn"
        assert shapes[f"{start}.q_proj.weight"] == (config["num_attention_heads"] * head, hidden)
        assert shapes[f"{start}.k_proj.weight"] == (config["num_key_value_heads"] * head, hidden)
        assert shapes[f"{start}.q_norm.weight"] == shapes[f"{start}.k_norm.weight"] == (head,)
    assert len(shapes) == 2 + 11 * config["num_hidden_layers"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        " leading and  double   spaces \n\n\ttabs\r\n",
        "naïve café, Zürich, smörgåsbord",
        "中文字符测试。日本語も。한국어",
        "مرحبا بالعالم",
        "🙂👩‍👩‍👧🏽🇫🇷",
        "e\u0301 is not é",
        "a\x00b\x7f",
        "3.14159 + 1,000,000",
        "def f(x):\n    return {'a': [x]}  # ok",
        "".join(chr(c) for c in range(256)),
        "".join(chr(c) for c in range(0x10000, 0x110000, 4099)),
    ],
)
def test_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text


def test_every_byte_has_a_token(tokenizer: Any) -> None:
    # The printable names of the 256 bytes, as byte-level BPE has them.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    names = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    vocabulary = tokenizer.get_vocab()
    assert [n for n in names if n not in vocabulary] == []


def test_digits_are_kept_apart(tokenizer: Any) -> None:
    assert len(tokenizer.encode("2024", add_special_tokens=False)) == 4
    assert not [t for t in tokenizer.get_vocab() if len(re.findall(r"\d", t)) > 1]


def test_special_tokens_are_single(tokenizer: Any) -> None:
    for token in SPECIAL + MARKERS:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1, token
    ids = tokenizer.encode("".join(SPECIAL + MARKERS), add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(MARKERS)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special_tokens=False)


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
CALL_AS_TEXT = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'

RENDERED: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    (
        "one question",
        [user("Hi")],
        {"add_generation_prompt": True},
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "system and several turns",
        [{"role": "system", "content": "Be brief."}, user("a"), assistant("b"), user("c")],
        {"add_generation_prompt": True},
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("no generation prompt", [user("a"), assistant("b")], {},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"),
    ("parts", [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], {},  # type: ignore[arg-type]
     "<|im_start|>user\nab<|im_end|>\n"),
    ("thinking", [user("a"), assistant("b"), user("c")], {"add_generation_prompt": True, "enable_thinking": True},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc /think<|im_end|>\n"
     "<|im_start|>assistant\n"),
    ("thinking asked for twice", [user("c /think")], {"enable_thinking": True},
     "<|im_start|>user\nc /think<|im_end|>\n"),
    ("thinking off", [user("a")], {"add_generation_prompt": True, "enable_thinking": False},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
    ("old thoughts are dropped", [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")], {},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"),
    ("old reasoning is dropped", [user("a"), assistant("b", reasoning_content="hm"), user("c")], {},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"),
    ("the last thought stays", [user("a"), assistant("b", reasoning_content="hm")], {},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nb<|im_end|>\n"),
    ("tools", [user("a")], {"tools": [TOOL], "add_generation_prompt": True},
     f"<|im_start|>system\n{TOOL_SYSTEM}<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
    ("tools and system", [{"role": "system", "content": "Be brief."}, user("a")], {"tools": [TOOL]},
     f"<|im_start|>system\nBe brief.\n\n{TOOL_SYSTEM}<|im_end|>\n<|im_start|>user\na<|im_end|>\n"),
    (
        "two calls and their responses",
        [
            user("a"),
            assistant("", tool_calls=[CALL, CALL_AS_TEXT]),
            {"role": "tool", "content": "18"},
            {"role": "tool", "content": "19"},
            assistant("b"),
        ],
        {},
        f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n18\n</tool_response>\n<tool_response>\n19\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n",
    ),
    ("a call without content", [user("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}], {},
     f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{CALL_TEXT}<|im_end|>\n"),
    ("text before a call", [user("a"), assistant("Wait.", tool_calls=[CALL])], {},
     f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nWait.\n{CALL_TEXT}<|im_end|>\n"),
    ("continue", [user("a"), assistant("The capital")], {"continue_final_message": True},
     "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nThe capital"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "options", "expected"), [r[1:] for r in RENDERED], ids=[r[0] for r in RENDERED])
def test_template(tokenizer: Any, messages: list[dict[str, Any]], options: dict[str, Any], expected: str) -> None:
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == expected


def test_prompts_are_well_formed() -> None:
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    assert len(prompts["prompts"]) == 200
    assert len({q["prompt"] for q in prompts["prompts"]}) == 200
    assert {q["category"] for q in prompts["prompts"]} == {
        "capitals", "arithmetic", "opposites", "units", "calendar", "toolkit", "chat", "general",
    }  # fmt: skip
    for name in ("prompts", "unknown", "think", "tools", "chats"):
        for question in prompts[name]:
            assert "prompt" in question or "messages" in question
            for pattern in question["expect"] + question.get("reject", []):
                re.compile(pattern)
