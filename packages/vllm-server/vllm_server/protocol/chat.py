"""``POST /v1/chat/completions``: request, response and stream chunk."""

from typing import Any, Literal

import msgspec

from vllm_server.protocol.receipt import Receipt
from vllm_server.protocol.sampling import Int32, SamplingFields
from vllm_server.protocol.usage import Usage


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """A function the model has called: ``arguments`` is JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call in an earlier answer of the assistant."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of the conversation. ``content`` is text or a list of parts, of which only text is understood."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # Parts of the official client's answer objects, which people send back as they came; only null is understood.
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool offered to the model."""

    function: Function
    type: Literal["function"] = "function"


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(SamplingFields, kw_only=True):
    """A conversation to continue. ``documents`` and ``reasoning_effort`` are for chat templates that read them."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: ReasoningEffort | None = None
    echo: bool | None = None


class ChatBatchRequest(ChatRequest, kw_only=True):
    """Several conversations, to which all other fields apply; each gets one answer."""

    messages: list[list[Message]]  # type: ignore[assignment]


class TopLogprob(msgspec.Struct):
    """A token that could have stood here; ``bytes`` is its text in UTF-8."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    """The token that stands here, and the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry per token."""

    content: list[TokenLogprob]


class AnswerMessage(msgspec.Struct):
    """The whole answer of the model."""

    role: str
    content: str


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    # In the answer to a batch, of the choice's conversation.
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[dict[int, dict[str, Any]] | None] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, tag_field="object", tag="chat.completion"):
    """The response."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: list[dict[int, dict[str, Any]] | None] | msgspec.UnsetType = msgspec.UNSET
    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct):
    """What is new in an answer."""

    role: str | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct):
    """What is new in one answer; ``stop_reason`` comes with the end."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET
