"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, Anthropic's API: requests, answers, events of a stream."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vllm_server.protocol.receipt import Receipt
from vllm_server.protocol.sampling import Int32, Salt


class CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    """Where a client wants a prompt cached. The prefix cache keeps all of it anyway, for as long as there is room."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Block(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What all blocks of content have."""

    cache_control: CacheControl | None = None


class TextBlock(Block, tag="text"):
    """Text. ``citations`` come with the blocks that the official client sends back; only none are understood."""

    text: str
    citations: Annotated[list[Any], Meta(max_length=0)] | None = None


class DirectCaller(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="direct"):
    """The model itself called a tool."""


class ToolUseBlock(Block, tag="tool_use"):
    """A tool that the assistant has called."""

    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller | None = None


class RefusedBlock(msgspec.Struct):
    """A kind of content that is known and not understood; whatever else is in it."""


class ImageBlock(RefusedBlock, tag_field="type", tag="image"):
    """A picture."""


class DocumentBlock(RefusedBlock, tag_field="type", tag="document"):
    """A file."""


class SearchResultBlock(RefusedBlock, tag_field="type", tag="search_result"):
    """A source that may be cited."""


class RedactedThinkingBlock(RefusedBlock, tag_field="type", tag="redacted_thinking"):
    """What the assistant thought, so that only its maker can read it."""


class ToolResultBlock(Block, tag="tool_result"):
    """What a tool gave back."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="thinking"):
    """What the assistant thought before it answered. Templates decide how much of it a model reads again."""

    thinking: str
    signature: str | None = None


ContentBlock = (
    TextBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class InputMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the conversation. A last one of the assistant is the beginning of the answer."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class CustomTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool offered to the model; ``input_schema`` is a JSON schema."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether the model may call tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether the model thinks before it answers."""

    type: Literal["disabled", "enabled", "adaptive", "between_tools"]
    budget_tokens: Int32 | None = None
    display: str | None = None


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``effort`` is for chat templates that read it as ``reasoning_effort``."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class Metadata(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A label for the operator's books."""

    user_id: str | None = None


class CountTokensRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What makes a prompt."""

    model: str | None = None
    messages: list[InputMessage]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """A conversation to go on with. What is not in Anthropic's own API means what it means for chat completions."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: Int32 | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    cache_salt: Salt | None = None
    vllm_xargs: dict[str, Any] | None = None
    include_receipt: bool | None = None


class TokenCount(msgspec.Struct):
    """The answer of ``count_tokens``."""

    input_tokens: int


class MessagesUsage(msgspec.Struct):
    """Token counts. ``input_tokens`` has those that were not read from the prefix cache, if the latter are told."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


StopReason = Literal["end_turn", "max_tokens", "stop_sequence"]


class AnswerText(msgspec.Struct, tag_field="type", tag="text"):
    """A block of text of an answer."""

    text: str
    citations: None = None


class AnthropicMessage(msgspec.Struct, tag_field="type", tag="message"):
    """The answer: whole, or as a stream begins, without content. A model that says nothing gives no block."""

    id: str
    model: str
    content: list[AnswerText]
    usage: MessagesUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"
    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """A stream begins."""

    message: AnthropicMessage


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: AnswerText


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    """Nothing new."""


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """What is new in a block."""

    index: int
    delta: TextDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class Ending(msgspec.Struct):
    """Why an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The answer is complete; the counts are of all of it."""

    delta: Ending
    usage: MessagesUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The stream ends."""

    receipt: Receipt | msgspec.UnsetType = msgspec.UNSET


StreamEvent = MessageStart | BlockStart | Ping | BlockDelta | BlockStop | MessageDelta | MessageStop
