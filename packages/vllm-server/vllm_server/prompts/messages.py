"""From a conversation in Anthropic's shape to the same in that of chat completions, which templates read."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.prompts.conversation import MAX_MESSAGES
from vllm_server.protocol.chat import ChatRequest, Function, FunctionCall, Message, Tool, ToolCall
from vllm_server.protocol.messages import (
    ContentBlock,
    CountTokensRequest,
    CustomTool,
    InputMessage,
    RefusedBlock,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)

FIELD_NAMES = {
    "reasoning_effort": "output_config.effort",
    "continue_final_message": "messages",
    "prompt": "messages",
    "prompt_token_ids": "messages",
    "stop": "stop_sequences",
}
"""What the fields of chat completions and of the engine are called here, for error messages."""


def chat_request_of(request: CountTokensRequest) -> ChatRequest:
    """A chat request that is rendered to the prompt of this one.

    Neighbouring messages of one role are one turn. A last turn of the assistant is gone on with. Results of tools
    become messages of their own, each beginning with ``Error:`` where the tool has failed.

    Raises:
        InvalidRequest: for content that does not belong where it stands, with its path.
        Unsupported: for content other than text, for forced or single tool calls, thinking, and answers in a format.
    """
    if not request.messages:
        raise InvalidRequest("messages must not be empty", field="messages")
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages takes at most {MAX_MESSAGES} messages", field="messages")
    _check_settings(request)
    try:
        messages = [*_system(request.system), *_messages(request.messages)]
    except RecursionError:
        raise InvalidRequest("messages: the input of a tool is nested too deeply", field="messages") from None
    variables = request.chat_template_kwargs
    if request.thinking is not None:
        # The name by which templates of models that can think know the switch.
        variables = {"enable_thinking": False, **(variables or {})}
    return ChatRequest(
        model=request.model,
        messages=messages,
        tools=None if request.tools is None else [_tool(tool, i) for i, tool in enumerate(request.tools)],
        tool_choice=_tool_choice(request.tool_choice),
        continue_final_message=messages[-1].role == "assistant",
        chat_template_kwargs=variables,
        reasoning_effort=None if request.output_config is None else request.output_config.effort,
    )


def _check_settings(request: CountTokensRequest) -> None:
    if request.thinking is not None and request.thinking.type != "disabled":
        raise Unsupported(
            "thinking.type can be disabled only: this server does not tell thinking from answering", field="thinking"
        )
    for name in ("budget_tokens", "display"):
        if request.thinking is not None and getattr(request.thinking, name) is not None:
            raise InvalidRequest(f"thinking.{name} needs thinking to be enabled", field="thinking")
    if request.output_config is not None and request.output_config.format is not None:
        raise Unsupported(
            "output_config.format is not supported: this server does not yet hold answers to a grammar",
            field="output_config",
        )


def _system(system: str | list[TextBlock] | None) -> list[Message]:
    if not system:
        return []
    return [Message(role="system", content=system if isinstance(system, str) else _text(system))]


def _messages(messages: list[InputMessage]) -> Iterator[Message]:
    names: dict[str, str] = {}  # of the tools, by the ids of their calls
    for role, turn in groupby(enumerate(messages), key=lambda numbered: numbered[1].role):
        blocks = [found for index, message in turn for found in _blocks(message, f"messages[{index}].content")]
        if role == "assistant":
            names |= {block.id: block.name for _, block in blocks if isinstance(block, ToolUseBlock)}
            yield _of_assistant(blocks)
        elif role == "user":
            yield from _of_user(blocks, names)
        else:
            yield Message(role="system", content=_text(_texts_only(blocks, role)))
    if role == "assistant" and any(isinstance(block, ToolUseBlock) for _, block in blocks):
        raise InvalidRequest("messages: a tool_use at the end needs a message with its tool_result", field="messages")


def _blocks(message: InputMessage, place: str) -> Iterator[tuple[str, ContentBlock]]:
    """The blocks of a message, each with the path that names it in errors."""
    if isinstance(message.content, str):
        yield place, TextBlock(text=message.content)
        return
    if not message.content:
        raise InvalidRequest(f"{place} must not be empty", field="messages")
    for index, block in enumerate(message.content):
        _check_kind(block, f"{place}[{index}]")
        yield f"{place}[{index}]", block


def _check_kind(block: object, place: str) -> None:
    if isinstance(block, RefusedBlock):
        kind = block.__struct_config__.tag
        raise Unsupported(f"{place} is of type {kind}: models of this server read text only", field="messages")


def _of_assistant(blocks: Iterable[tuple[str, ContentBlock]]) -> Message:
    texts, thoughts, calls = [], [], []
    for place, block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(ToolCall(FunctionCall(block.name, arguments), block.id))
        else:
            raise _misplaced(place, block, "assistant")
    return Message(
        role="assistant",
        content=_text(texts) if texts else "",
        reasoning="\n".join(thoughts) if thoughts else None,
        tool_calls=calls or None,
    )


def _of_user(blocks: Iterable[tuple[str, ContentBlock]], names: dict[str, str]) -> Iterator[Message]:
    texts: list[TextBlock] = []
    for place, block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolResultBlock):
            if texts:
                yield Message(role="user", content=_text(texts))
                texts = []
            yield Message(
                role="tool",
                content=_result(block, place),
                tool_call_id=block.tool_use_id,
                name=names.get(block.tool_use_id),
            )
        else:
            raise _misplaced(place, block, "user")
    if texts:
        yield Message(role="user", content=_text(texts))


def _result(block: ToolResultBlock, place: str) -> str:
    content = block.content or ""
    if not isinstance(content, str):
        for index, part in enumerate(content):
            _check_kind(part, f"{place}.content[{index}]")
        content = "\n".join(part.text for part in content if isinstance(part, TextBlock))
    return f"Error: {content}" if block.is_error else content


def _texts_only(blocks: Iterable[tuple[str, ContentBlock]], role: str) -> Iterator[TextBlock]:
    for place, block in blocks:
        if not isinstance(block, TextBlock):
            raise _misplaced(place, block, role)
        yield block


def _misplaced(place: str, block: ContentBlock, role: str) -> InvalidRequest:
    kind = block.__struct_config__.tag
    return InvalidRequest(f"{place}: {kind} does not belong into a message of role {role}", field="messages")


def _text(blocks: Iterable[TextBlock]) -> str | list[dict[str, Any]]:
    """One text as it is, several as parts: the template, or what is set for it, decides how they are joined."""
    texts = [block.text for block in blocks]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _tool(tool: CustomTool, index: int) -> Tool:
    if tool.strict:
        raise Unsupported(
            f"tools[{index}].strict is not supported: this server does not yet hold answers to a grammar", field="tools"
        )
    return Tool(Function(tool.name, tool.description, tool.input_schema))


def _tool_choice(choice: ToolChoice | None) -> str | None:
    if choice is None:
        return None
    if choice.disable_parallel_tool_use:
        raise Unsupported(
            "tool_choice.disable_parallel_tool_use is not supported: this server cannot keep the model from calling "
            "several tools",
            field="tool_choice",
        )
    if choice.type in ("any", "tool"):
        raise Unsupported(
            "tool_choice.type can be none or auto: this server cannot force the model to call a tool",
            field="tool_choice",
        )
    if choice.name is not None:
        raise InvalidRequest("tool_choice.name needs tool_choice.type to be tool", field="tool_choice")
    return choice.type
