"""A chat request as ``render_chat`` wants it: plain dicts, tools, and switches that fit together."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.protocol.chat import Message, ReasoningEffort, Tool
from vllm_server.template_variables import may_be_chosen

MAX_MESSAGES = 10_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """The arguments of ``render_chat``. ``chat_template`` is the request's own, which only some servers take.

    ``must_read`` has the variables that the template has to look at, and the fields of the request that they are.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    template_kwargs: dict[str, Any]
    must_read: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None


class HasConversation(Protocol):
    """The fields of a request that make its conversation."""

    messages: list[Message]
    tools: list[Tool] | None
    tool_choice: str | dict[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None
    documents: list[dict[str, Any]] | None
    reasoning_effort: ReasoningEffort | None


def conversation_of(request: HasConversation, *, trust_template: bool = False) -> Conversation:
    """The conversation of a request. ``trust_template``: the request may bring a template of its own.

    Raises:
        InvalidRequest: for contradictions, with the path of the field (``messages[2].content``).
        Unsupported: for forced tool calls, and for a template where none is taken.
    """
    if not request.messages:
        raise InvalidRequest("messages must not be empty", field="messages")
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages takes at most {MAX_MESSAGES} messages", field="messages")
    continues = bool(request.continue_final_message)
    generates = request.add_generation_prompt if request.add_generation_prompt is not None else not continues
    if continues and generates:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other", field="continue_final_message"
        )
    if continues and request.messages[-1].role != "assistant":
        raise InvalidRequest(
            "continue_final_message needs a last message of the assistant", field="continue_final_message"
        )
    if request.chat_template is not None and not trust_template:
        raise Unsupported(
            "chat_template is not supported: this server takes no templates from requests (its operator can allow them "
            "with --trust-request-chat-template)",
            field="chat_template",
        )
    variables = _template_kwargs(request.chat_template_kwargs)
    given = {"documents": request.documents, "reasoning_effort": request.reasoning_effort}
    own = {name: value for name, value in given.items() if value}
    tools = _tools(request)
    # What is false says no more than what is not there, to a template that does not know it.
    must_read = {name: f"chat_template_kwargs.{name}" for name, value in variables.items() if value}
    must_read |= {name: name for name in (*own, *(("tools",) if tools else ()))}
    return Conversation(
        [_checked(message, f"messages[{index}]") for index, message in enumerate(request.messages)],
        tools,
        generates,
        continues,
        {**variables, **own},
        must_read,
        request.chat_template,
    )


def _checked(message: Message, place: str) -> dict[str, Any]:
    if message.annotations:
        raise Unsupported(f"{place}.annotations is not supported", field=f"{place}.annotations")
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(f"{place}.tool_call_id is missing", field=f"{place}.tool_call_id")
    if message.role != "assistant":
        for name in ("tool_calls", "reasoning", "reasoning_content", "refusal"):
            if getattr(message, name) is not None:
                raise InvalidRequest(f"{place}.{name} belongs to the assistant only", field=f"{place}.{name}")
    elif message.refusal is not None and message.content is None:
        return {"role": "assistant", "content": message.refusal}
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise InvalidRequest(f"{place}.content is missing", field=f"{place}.content")
    # Templates know the role "developer" under its older name.
    role = "system" if message.role == "developer" else message.role
    return {"content": "", **_given(message), "role": role}


def _given(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {name: value for name, value in fields.items() if value is not None and name != "annotations"}


def _tools(request: HasConversation) -> list[dict[str, Any]] | None:
    choice = request.tool_choice
    if choice is None or choice == "none" or choice == "auto":
        if choice == "auto" and not request.tools:
            raise InvalidRequest("tool_choice needs tools", field="tool_choice")
        # The only way to keep a model from calling a tool is not to tell it of any.
        if not request.tools or choice == "none":
            return None
        return [_template_tool(tool) for tool in msgspec.to_builtins(request.tools)]
    if choice == "required" or isinstance(choice, dict):
        raise Unsupported(
            "tool_choice can be none or auto: this server cannot force the model to call a tool", field="tool_choice"
        )
    raise InvalidRequest("tool_choice must be none or auto", field="tool_choice")


def _template_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool["function"].items() if value is not None}
    return {"type": "function", "function": function}


def _template_kwargs(given: dict[str, Any] | None) -> dict[str, Any]:
    for name in given or {}:
        if not may_be_chosen(name):
            raise InvalidRequest(f"chat_template_kwargs cannot set {name[:100]!a}", field="chat_template_kwargs")
    return given or {}
