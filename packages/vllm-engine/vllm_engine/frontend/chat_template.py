"""Chat messages to the text that the model was trained on: messages are checked here, ``templates`` renders them."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from vllm_engine.errors import InvalidRequest, Unsupported, shown
from vllm_engine.frontend.content_format import ContentFormat, check_content_format, shape_content
from vllm_engine.frontend.template_engine import names_read, render_template

TEXT_OF_PART = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kind of a content part -> the key that holds its text."""

RESERVED_VARIABLES = frozenset(
    {
        "tokenizer",
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "chat_template_content_format",
        "must_read",
    }
)
"""Names that ``render_chat`` takes itself: ``check_template_kwargs`` refuses them."""


class HasChatTemplates(Protocol):
    """The part of a tokenizer that is needed here."""

    chat_templates: Mapping[str, str]
    special_tokens_map: Mapping[str, str]


def render_chat(
    tokenizer: HasChatTemplates,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    chat_template_content_format: ContentFormat = "auto",
    must_read: Mapping[str, str] = MappingProxyType({}),
    **kwargs: Any,
) -> str:
    """Text of a conversation. It holds its own special tokens: encode it with ``add_special_tokens=False``.

    Args:
        tokenizer: whose templates and special tokens to use.
        messages: objects with ``role``, ``content`` (text, or a list of text parts) and what else the template reads.
        tools: function descriptions in JSON schema form.
        add_generation_prompt: end with the beginning of an answer.
        continue_final_message: end within the last message, so that the model goes on with it.
        chat_template: name of one of the tokenizer's templates, or a template itself.
        chat_template_content_format: how content reaches the template, see ``ContentFormat``.
        must_read: variables that make no sense with a template that does not look at them, and what to call them.
        kwargs: further variables of the template.

    Raises:
        InvalidRequest: for messages or variables that are not well-formed, or that the template refuses.
        Unsupported: for content other than text, and for a variable that the template does not read.
        ConfigError: when the model's template is broken.
    """
    if add_generation_prompt and continue_final_message:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other: the last message goes on, or a new "
            "one begins",
            field="continue_final_message",
        )
    conversation = prepare_messages(messages)
    template, from_request = _select_template(tokenizer.chat_templates, chat_template, has_tools=bool(tools))
    for name, field in must_read.items():
        if name not in names_read(template, from_request=from_request):
            raise Unsupported(f"{field} has no effect: the chat template does not read it", field=field)
    content_format = check_content_format(chat_template_content_format)
    shape_content(conversation, content_format, template, tokenizer.special_tokens_map)
    variables = {
        **tokenizer.special_tokens_map,
        **_plain(kwargs, "chat_template_kwargs"),
        "messages": conversation,
        "tools": _plain(tools, "tools") if tools else None,
        "add_generation_prompt": add_generation_prompt,
    }
    if not continue_final_message:
        return render_template(template, variables, from_request=from_request)
    mark = _mark_end(conversation)
    return _cut_at(mark, render_template(template, variables, from_request=from_request))


def check_template_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further variables for ``render_chat`` as a user gave them. Raises ``InvalidRequest`` for what it takes itself."""
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise InvalidRequest("chat_template_kwargs must be an object", field="chat_template_kwargs")
    for name in kwargs:
        if name in RESERVED_VARIABLES:
            raise InvalidRequest(f"chat_template_kwargs must not set {name}", field="chat_template_kwargs")
    return dict(kwargs)


def prepare_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checked copies of messages as templates expect them: content a text or text parts, tool arguments as objects.

    Raises:
        InvalidRequest: naming the message at fault.
        Unsupported: for content other than text.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", field="messages")
    return [_prepare_message(i, _plain(message, "messages")) for i, message in enumerate(messages)]


def _prepare_message(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object", field="messages")
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise InvalidRequest(f"{where} needs a role", field="messages")
    content = message.get("content")
    if isinstance(content, list):
        texts = [_text_of(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        message["content"] = [{"type": "text", "text": text} for text in texts]
    elif content is not None and not isinstance(content, str):
        raise InvalidRequest(f"{where}.content must be a text or a list of parts", field="messages")
    else:
        message.setdefault("content", "")
    # Clients send the reasoning back under either name; templates read the longer one.
    if isinstance(message.get("reasoning"), str):
        message.setdefault("reasoning_content", message["reasoning"])
    if message.get("tool_calls") is not None:
        _prepare_tool_calls(message["tool_calls"], f"{where}.tool_calls")
    return message


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} must be an object", field="messages")
    kind = part.get("type")
    key = TEXT_OF_PART.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise Unsupported(f"{where} is of type {shown(kind)}: this model takes text only", field="messages")
    text = part.get(key)
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{key} must be a text", field="messages")
    return text


def _prepare_tool_calls(calls: Any, where: str) -> None:
    """Arguments come as JSON text from clients; templates want to walk through them."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", field="messages")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{where}[{i}] needs a function with a name", field="messages")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{where}[{i}].function.arguments is not valid JSON", field="messages") from error
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise InvalidRequest(f"{where}[{i}].function.arguments must be a JSON object", field="messages")
        function["arguments"] = arguments


def _select_template(templates: Mapping[str, str], asked: str | None, *, has_tools: bool) -> tuple[str, bool]:
    """The template to use, and whether it came with the request."""
    if asked is not None:
        if not isinstance(asked, str) or not asked:
            raise InvalidRequest("chat_template must be a non-empty text", field="chat_template")
        return (templates[asked], False) if asked in templates else (asked, True)
    name = "tool_use" if has_tools and "tool_use" in templates else "default"
    if name in templates:
        return templates[name], False
    if templates:
        raise InvalidRequest(
            f"this model has no default chat template; chat_template must be one of {', '.join(sorted(templates))}",
            field="chat_template",
        )
    raise Unsupported("this model has no chat template: use completions, or give a chat_template", field="messages")


def _plain(value: Any, field: str, depth: int = 0) -> Any:
    """A deep copy of JSON types only: a template must not get at the methods of any other object."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > 64:
        raise InvalidRequest(f"{field} is nested too deeply", field=field)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InvalidRequest(f"{field} has an object key that is no text", field=field)
        return {str(key): _plain(item, field, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, field, depth + 1) for item in value]
    # The message classes of the openai package: objects of them, not the classes themselves.
    if not isinstance(value, type) and callable(dump := getattr(value, "model_dump", None)):
        return _plain(dump(exclude_none=True), field, depth + 1)
    raise InvalidRequest(f"{field} holds a {type(value).__name__}, which is no JSON value", field=field)


def _mark_end(conversation: list[dict[str, Any]]) -> str:
    """Put a mark that occurs nowhere else at the end of the last message, and a space that a template may trim."""
    last, key = conversation[-1], "content"
    if isinstance(last.get("content"), list) and last["content"]:
        last, key = last["content"][-1], "text"
    if not isinstance(last.get(key), str):
        raise InvalidRequest("continue_final_message needs text in the last message", field="continue_final_message")
    mark, everything = "\ue000end\ue001", json.dumps(conversation, ensure_ascii=False)
    while mark in everything:
        mark += "\ue001"
    last[key] += mark + " "
    return mark


def _cut_at(mark: str, text: str) -> str:
    end = text.rfind(mark)
    if end < 0:
        raise InvalidRequest(
            "the chat template leaves the end of the last message out, so it cannot be continued",
            field="continue_final_message",
        )
    trims = not text.startswith(mark + " ", end)
    return text[:end].rstrip() if trims else text[:end]
