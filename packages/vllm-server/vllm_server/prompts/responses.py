"""From a request of ``/v1/responses`` to the chat that it asks for, in the terms of ``/v1/chat/completions``."""

from collections.abc import Sequence
from typing import Any

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.context import ServerContext
from vllm_server.field_names import named_as_in_request
from vllm_server.prompts.conversation import conversation_of
from vllm_server.prompts.rendering import render
from vllm_server.prompts.response_items import (
    decode_items,
    items_of_answer,
    items_of_input,
    items_of_messages,
    messages_of,
)
from vllm_server.prompts.truncation import FittingPrompt, fitting_prompt, tokens_of
from vllm_server.protocol.chat import ChatRequest, Function, Message, Tool
from vllm_server.protocol.fields import REASONS
from vllm_server.protocol.responses import Item, ResponseObject, ResponsesRequest
from vllm_server.response_store import KeptResponse

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` can ask for."""

MAX_COUNTED_CHARS = 1 << 22
"""The longest text whose tokens are counted: far more than any model reads."""

_SAME = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "vllm_xargs",
    "chat_template_kwargs",
    "priority",
)

FIELD_NAMES = {
    "logprobs": "top_logprobs",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "prompt_token_ids": "input",
    "reasoning_effort": "reasoning",
}
"""What the fields of a chat are called here."""


def check_parts(fields: dict[str, Any]) -> None:
    """Refuse, with reasons, what the typed request knows no kinds of. Raises ``Unsupported``."""
    text = fields.get("text")
    if isinstance(text, dict):
        shape = text.get("format")
        if isinstance(shape, dict) and shape.get("type") in ("json_object", "json_schema"):
            raise Unsupported(f"text.format must be text: {REASONS['response_format']}", field="text.format")
        if text.get("verbosity") in ("low", "high"):
            raise Unsupported(f"text.verbosity is not supported: {REASONS['verbosity']}", field="text.verbosity")
    reasoning = fields.get("reasoning")
    if isinstance(reasoning, dict):
        for name in ("summary", "generate_summary"):
            if isinstance(reasoning.get(name), str):
                raise Unsupported(
                    f"reasoning.{name} is not supported: {REASONS['include_reasoning']}",
                    field=f"reasoning.{name}",
                )
    tools = fields.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise Unsupported(
                f"tools[{index}] is of type {kind[:100]!a}: this server calls no tools itself, and knows function only",
                field=f"tools[{index}].type",
            )


def items_of(request: ResponsesRequest, previous: KeptResponse | None) -> list[Item]:
    """All that the model is to read but the instructions: of the previous response, and of the request."""
    items: list[Item] = []
    if previous is not None:
        items += decode_items(previous.items)
        items += items_of_answer(msgspec.json.decode(previous.body, type=ResponseObject).output)
    items += items_of_messages(request.previous_input_messages or [])
    items += items_of_input(request.input)
    if not items:
        raise InvalidRequest("input must not be empty", field="input")
    return items


def chat_of(request: ResponsesRequest, items: Sequence[Item]) -> ChatRequest:
    """The chat that means the same. Logprobs are asked for by ``include``, their number by ``top_logprobs``."""
    messages = messages_of(items)
    if request.instructions:
        messages.insert(0, Message(role="system", content=request.instructions))
    tools = [Tool(Function(tool.name, tool.description, tool.parameters, tool.strict)) for tool in request.tools or []]
    return ChatRequest(
        messages=messages,
        tools=tools or None,
        # Without tools there is nothing to choose, and answers that are sent back say "auto".
        tool_choice=None if request.tool_choice == "auto" and not tools else request.tool_choice,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        max_completion_tokens=request.max_output_tokens,
        logprobs=LOGPROBS in (request.include or []),
        top_logprobs=request.top_logprobs,
        **{name: getattr(request, name) for name in _SAME},
    )


async def prompt_of(request: ResponsesRequest, chat: ChatRequest, context: ServerContext) -> FittingPrompt:
    """The prompt, within the model's length where the request asks for that.

    Raises ``InvalidRequest`` for what cannot be rendered.
    """
    with named_as_in_request(FIELD_NAMES):
        conversation = conversation_of(chat)
        if request.truncation == "auto":
            return await fitting_prompt(conversation, context, request.max_output_tokens or 1)
        text = await render(conversation, context)
    # A chat template writes the special tokens itself.
    return FittingPrompt({"prompt": text, "add_special_tokens": False}, text, 0)


async def token_count(prompt: FittingPrompt, context: ServerContext) -> int:
    """How many tokens a prompt has. Raises ``InvalidRequest`` for one that would take long to count."""
    if len(prompt.text) > MAX_COUNTED_CHARS:
        raise InvalidRequest(f"input takes at most {MAX_COUNTED_CHARS} characters to be counted", field="input")
    return len(await tokens_of(prompt.text, context))
