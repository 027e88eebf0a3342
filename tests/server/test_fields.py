"""No field of the published request classes is ignored in silence."""

from typing import Any

import msgspec
import pytest

from tests.server.conftest import Post
from tests.server.fake_llm import FakeLLM
from vllm_engine.params import SamplingParams
from vllm_server.protocol import fields as rules
from vllm_server.protocol.chat import ChatRequest
from vllm_server.protocol.completions import CompletionRequest

# The request classes of the peer's newest release and of the OpenAI API, by name.
CHAT = """
    messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p
    repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs
    logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message
    add_special_tokens documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs
    structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids
    return_weight_versions routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload
    return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
    stream_interval
    audio function_call functions metadata modalities prediction prompt_cache_key prompt_cache_retention
    safety_identifier service_tier store verbosity web_search_options
""".split()
COMPLETION = """
    model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty watermarking
    length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs
    logprob_token_ids bad_words prompt_embeds add_special_tokens response_format structured_outputs priority
    request_id session_id return_tokens_as_token_ids return_token_ids return_weight_versions
    routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs cache_salt kv_transfer_params
    ec_transfer_params vllm_xargs repetition_detection thinking_token_budget stream_interval
    best_of
""".split()

# Some value that asks for something, for each field that is refused.
ASKING: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "ec_transfer_params": {"a": 1},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "include_reasoning": False,
    "kv_transfer_params": {"a": 1},
    "length_penalty": 2.0,
    "logprob_token_ids": [1],
    "media_io_kwargs": {"a": 1},
    "mm_payload": "x",
    "mm_processor_kwargs": {"a": 1},
    "modalities": ["text", "audio"],
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_retention": "24h",
    "repetition_detection": {"a": 1},
    "response_format": {"type": "json_object"},
    "return_mm_kwargs": True,
    "return_prompt_text": True,
    "return_token_offsets": True,
    "return_weight_versions": True,
    "routed_experts_prompt_start": 3,
    "service_tier": "priority",
    "store": True,
    "stream_interval": 4,
    "structured_outputs": {"regex": "a+"},
    "suffix": "x",
    "thinking_token_budget": 5,
    "truncation_side": "right",
    "use_beam_search": True,
    "verbosity": "low",
    "watermarking": True,
    "web_search_options": {"a": 1},
}


def names_of(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(
    ("documented", "kind", "refused"),
    [(CHAT, ChatRequest, rules.REFUSED_CHAT), (COMPLETION, CompletionRequest, rules.REFUSED_COMPLETION)],
)
def test_each_documented_field_is_honoured_or_refused_or_a_hint(
    documented: list[str], kind: type[msgspec.Struct], refused: dict[str, Any]
) -> None:
    for name in documented:
        places = [name in names_of(kind), name in refused, name in rules.HINTS]
        assert places.count(True) == 1, name


def test_each_sampling_option_of_the_engine_is_a_field_of_both_requests() -> None:
    options = {field.name for field in msgspec.structs.fields(SamplingParams)}
    options -= {"detokenize", "output_kind", "max_tokens_must_fit"}  # the server's own business
    options = options - {"extra_args"} | {"vllm_xargs"}
    assert options <= names_of(ChatRequest)
    assert options <= names_of(CompletionRequest)


@pytest.mark.parametrize("name", sorted(rules.REFUSED_COMPLETION))
async def test_a_refused_field_of_completions_gives_a_400_that_names_it(
    complete: Post, llm: FakeLLM, name: str
) -> None:
    response = await complete(prompt="x", max_tokens=1, **{name: ASKING[name]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert llm.calls == []
    for neutral in (None, *rules.REFUSED_COMPLETION[name]):
        assert (await complete(prompt="x", max_tokens=1, **{name: neutral})).status_code == 200


@pytest.mark.parametrize("name", sorted(rules.REFUSED_CHAT))
async def test_a_refused_field_of_chat_gives_a_400_that_names_it(chat: Post, llm: FakeLLM, name: str) -> None:
    response = await chat(max_tokens=1, **{name: ASKING[name]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert llm.calls == []
    for neutral in (None, *rules.REFUSED_CHAT[name]):
        assert (await chat(max_tokens=1, **{name: neutral})).status_code == 200


def test_each_refusal_has_its_reason() -> None:
    tables = [table for name, table in vars(rules).items() if name.startswith("REFUSED_")]
    tables.append(rules.NOT_FOR_TEXT)
    assert rules.REASONS.keys() == set().union(*tables)


def test_a_neutral_boolean_is_no_number() -> None:
    with pytest.raises(Exception, match="use_beam_search"):
        rules.without_refused({"use_beam_search": 0}, rules.REFUSED_CHAT)
    with pytest.raises(Exception, match="stream_interval"):
        rules.without_refused({"stream_interval": True}, rules.REFUSED_CHAT)


@pytest.mark.parametrize("name", sorted(rules.HINTS))
async def test_a_hint_changes_nothing(complete: Post, chat: Post, name: str) -> None:
    assert (await complete(prompt="x", max_tokens=1, **{name: "x"})).status_code == 200
    assert (await chat(max_tokens=1, **{name: "x"})).status_code == 200


async def test_a_field_that_nobody_knows_is_refused_by_name(complete: Post, chat: Post) -> None:
    for response in (await complete(prompt="x", max_token=1), await chat(max_token=1)):
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "max_token")
        assert "not a field" in error["message"]
