"""``/v1/responses``: the request, the response with its items, and what the routes around it give."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from vllm_server.protocol.chat import Message, ReasoningEffort, TokenLogprob
from vllm_server.protocol.receipt import Receipt
from vllm_server.protocol.sampling import Int32, Salt

Label = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


def _one_of(*names: str) -> Meta:
    """For the API's description: an object of one of these types, which we tell apart ourselves."""
    return Meta(extra_json_schema={"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]})


AnyItem = Annotated[dict[str, Any], _one_of("MessageItem", "FunctionCallItem", "FunctionCallOutputItem")]
AnyPart = Annotated[dict[str, Any], _one_of("TextPart", "RefusalPart")]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function", kw_only=True):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How long to think, for chat templates that read it. There are no summaries."""

    effort: ReasoningEffort | None = None
    summary: None = None
    generate_summary: None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Plain text."""


class TextConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the text of the answer is like; ``verbosity`` is not steered."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to answer, and how. None means: the default of the model or of the engine.

    ``previous_input_messages`` are messages as ``/v1/chat/completions`` takes them, before those of ``input``.
    """

    model: str | None = None
    input: str | list[AnyItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    previous_input_messages: list[Message] | None = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_output_tokens: Int32 | None = None
    top_logprobs: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    priority: Int32 | None = None
    cache_salt: Salt | None = None
    request_id: str | None = None
    vllm_xargs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_response_messages: bool | None = None
    include_receipt: bool | None = None


class TokenCountRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Those fields of a request that decide what the model reads."""

    model: str | None = None
    input: str | list[AnyItem]
    instructions: str | None = None
    previous_response_id: str | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None


# ---- items of a conversation ----


class _Item(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """``id`` and ``status`` come back with items of earlier answers, and say nothing to the model."""

    id: str | None = None
    status: ItemStatus | None = None


class MessageItem(_Item, tag_field="type", tag="message", kw_only=True):
    """What somebody said: a text, or parts of text."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[AnyPart]
    phase: None = None


class FunctionCallItem(_Item, tag_field="type", tag="function_call", kw_only=True):
    """A call that the assistant made; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(_Item, tag_field="type", tag="function_call_output", kw_only=True):
    """What the call gave."""

    call_id: str
    output: str | list[AnyPart]


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A text of a message; ``annotations`` and ``logprobs`` come back with earlier answers."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: None = None


class RefusalPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The assistant's word that it will not answer."""

    type: Literal["refusal"]
    refusal: str


# ---- the response ----


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of an answer; ``logprobs`` are there if they were asked for."""

    text: str
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """The answer of the model."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: str = "assistant"


class InputTokensDetails(msgspec.Struct):
    """Tokens that came out of the prefix cache. None is written there to stay for a promised time."""

    cached_tokens: int
    cache_write_tokens: int = 0
    dropped_messages: int | UnsetType = UNSET
    """Messages that ``truncation`` left out, if any."""


class OutputTokensDetails(msgspec.Struct):
    """Thinking is not told from answering."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why the answer ends early."""

    reason: Literal["max_output_tokens"]


class ResponseError(msgspec.Struct):
    """Why there is no answer."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class RawMessage(msgspec.Struct, tag_field="type", tag="raw_message_tokens"):
    """What the model read or wrote, as text and as token ids."""

    message: str
    tokens: list[int]


class ResponseObject(msgspec.Struct, tag_field="object", tag="response", kw_only=True):
    """The response. Times are in seconds since 1970."""

    id: str
    created_at: int
    status: Status
    model: str
    completed_at: int | None = None
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    output: list[OutputMessage] = msgspec.field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: Reasoning = msgspec.field(default_factory=Reasoning)
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool = True
    temperature: float = 1.0
    text: TextConfig = msgspec.field(default_factory=lambda: TextConfig(format=TextFormat(), verbosity="medium"))
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[FunctionTool] = msgspec.field(default_factory=list)
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    input_messages: list[RawMessage] | UnsetType = UNSET
    output_messages: list[RawMessage] | UnsetType = UNSET
    receipt: Receipt | UnsetType = UNSET
    """Only in its JSON: it is made when the rest is written."""


class DeletedResponse(msgspec.Struct, tag_field="object", tag="response"):
    """The word that a response is gone."""

    id: str
    deleted: bool = True


class ItemList(msgspec.Struct, tag_field="object", tag="list"):
    """A page of the items that a response answers."""

    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(msgspec.Struct, tag_field="object", tag="response.input_tokens"):
    """How many tokens the model would read."""

    input_tokens: int


# ---- the events of a stream ----


class StateEvent(msgspec.Struct):
    """``response.created``, ``.queued``, ``.in_progress``, and the last of all: ``response.completed`` and its like."""

    type: str
    sequence_number: int
    response: Raw
    """JSON of a ``ResponseObject``."""


class ItemEvent(msgspec.Struct):
    """``response.output_item.added`` and ``.done``."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputMessage


class PartEvent(msgspec.Struct):
    """``response.content_part.added`` and ``.done``."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDeltaEvent(msgspec.Struct, tag_field="type", tag="response.output_text.delta"):
    """What is new in the text."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDoneEvent(msgspec.Struct, tag_field="type", tag="response.output_text.done"):
    """The whole text."""

    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ErrorEvent(msgspec.Struct, tag_field="type", tag="error"):
    """Why a stream breaks off."""

    sequence_number: int
    message: str
    code: str | None
    param: str | None
