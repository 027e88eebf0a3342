"""The sampling fields that all generating requests share, and how they become ``SamplingParams``."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.params import OutputKind, SamplingParams

# Fields with the same name and meaning in a request and in SamplingParams.
_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
)


Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
"""Counts and priorities: what every later stage can hold."""
Salt = Annotated[str, Meta(min_length=1, max_length=256)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a stream carries besides the text: the token counts at its end, or with every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """Random padding against traffic analysis: OpenAI's default is true, ours false; true is refused."""


class SamplingFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Everything optional; None means: the default of the model or of the engine."""

    model: str | None = None
    n: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Int32 | None = None
    max_tokens: Int32 | None = None
    prompt_logprobs: Int32 | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Int32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Int32 | None = None
    cache_salt: Salt | None = None
    request_id: str | None = None
    add_special_tokens: bool | None = None
    vllm_xargs: dict[str, Any] | None = None
    """What logits processors of the operator's own are told: ``SamplingParams.extra_args``."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    include_receipt: bool | None = None
    """Whether the answer says where its time went; the header ``x-vllm-include-receipt`` does the same."""


def check_priority(request: SamplingFields, policy: str) -> None:
    """Raises ``Unsupported`` for a priority where requests do not go by it."""
    if request.priority and policy != "priority":
        raise Unsupported(
            f"priority has no effect: this server's --scheduling-policy is {policy}, not priority", field="priority"
        )


def check_stream_options(request: SamplingFields) -> None:
    """Raises ``InvalidRequest`` for stream options without a stream, or ones that cannot be honoured."""
    options = request.stream_options
    if options is None:
        return
    if not request.stream:
        raise InvalidRequest("stream_options needs stream to be true", field="stream_options")
    if options.include_obfuscation:
        raise Unsupported(
            "stream_options.include_obfuscation is not supported", field="stream_options.include_obfuscation"
        )


def sampling_params(
    request: SamplingFields,
    defaults: Mapping[str, Any],
    *,
    max_tokens: Int32 | None,
    max_tokens_asked: bool = False,
    logprobs: int | None,
    prompt_logprobs: Int32 | None,
) -> SamplingParams:
    """The request's own values over the model's ``defaults`` over the engine's.

    ``max_tokens`` and the two kinds of logprobs are spelled differently in the two APIs: the caller reads them.
    ``max_tokens_asked``: the number is the request's own, and not to be cut where the prompt leaves less room.

    Raises:
        InvalidRequest: when a value is out of range.
    """
    values = {name: defaults[name] for name in _SAME if name in defaults}
    for name in _SAME:
        given = getattr(request, name)
        if given is not None:
            values[name] = given
    if values.get("stop") in ("", []):
        del values["stop"]
    values["max_tokens"] = max_tokens
    values["logprobs"] = logprobs
    values["prompt_logprobs"] = prompt_logprobs
    values["max_tokens_must_fit"] = max_tokens_asked
    values["extra_args"] = request.vllm_xargs
    values["output_kind"] = OutputKind.DELTA if request.stream else OutputKind.FINAL_ONLY
    return SamplingParams(**values)
