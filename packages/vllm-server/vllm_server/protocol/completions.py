"""``POST /v1/completions``: request, response and stream chunk."""

from typing import Any

import msgspec

from vllm_server.protocol.receipt import Receipt
from vllm_server.protocol.sampling import Int32, SamplingFields
from vllm_server.protocol.usage import Usage


class CompletionRequest(SamplingFields, kw_only=True):
    """A prompt as text, as token ids, or a list of either; ``logprobs`` counts alternatives for each token.

    ``prompt_embeds`` instead: base64 of a file with one tensor [tokens, hidden size], or a list of such texts.
    """

    prompt: str | list[Any] | None = None
    prompt_embeds: str | list[str] | None = None
    echo: bool | None = None
    logprobs: Int32 | None = None
    best_of: Int32 | None = None


class CompletionLogprobs(msgspec.Struct):
    """One entry per token. ``text_offset`` counts characters from the start of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct):
    """One completion, or in a stream what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: list[dict[int, dict[str, Any]] | None] | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, tag_field="object", tag="text_completion"):
    """The response, and with ``usage`` null or unset a chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET
