"""Items of ``/v1/responses``: checked, in one form, and as the messages of a chat.

In that form each item has an id, and content is always a list of parts.
"""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.json_body import convert
from vllm_server.protocol.chat import FunctionCall, Message, ToolCall
from vllm_server.protocol.responses import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    OutputMessage,
    RefusalPart,
    TextPart,
)

_KINDS: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
}
_MEDIA = frozenset({"input_image", "input_file", "input_audio"})
_decode = msgspec.json.Decoder(list[Item]).decode


def new_item_id(kind: str) -> str:
    """An id for an item: ``msg_0f...``, ``fc_0f...``."""
    return f"{kind}_{uuid.uuid4().hex}"


def items_of_input(value: str | list[dict[str, Any]]) -> list[Item]:
    """The items of the field ``input``. Raises ``InvalidRequest`` naming the place, ``Unsupported`` for other kinds."""
    if isinstance(value, str):
        return [_message("user", [_text_part("user", value)])]
    return [_parsed(item, f"input[{index}]") for index, item in enumerate(value)]


def items_of_messages(messages: Sequence[Message]) -> list[Item]:
    """The same of messages of a chat, the field ``previous_input_messages``."""
    items: list[Item] = []
    for index, message in enumerate(messages):
        place = f"previous_input_messages[{index}]"
        _check_plain(message, place)
        if message.role == "tool":
            output = "".join(_texts(message.content, place))
            call_id = message.tool_call_id or ""
            items.append(FunctionCallOutputItem(id=new_item_id("fco"), call_id=call_id, output=output))
            continue
        texts = _texts(message.content, place)
        if texts:
            items.append(_message(message.role, [_text_part(message.role, text) for text in texts]))
        items += [
            FunctionCallItem(
                id=new_item_id("fc"),
                call_id=call.id or "",
                name=call.function.name,
                arguments=_json_object(call.function.arguments, f"{place}.tool_calls"),
            )
            for call in message.tool_calls or []
        ]
    return items


def items_of_answer(output: Iterable[OutputMessage]) -> list[Item]:
    """What the model said in an earlier response."""
    return [
        MessageItem(
            id=message.id,
            status=message.status,
            role="assistant",
            content=[_text_part("assistant", part.text) for part in message.content],
        )
        for message in output
    ]


def encode_items(items: Sequence[Item]) -> bytes:
    """Items as JSON, to be kept."""
    return msgspec.json.encode(items)


def decode_items(kept: bytes) -> list[Item]:
    """The items of ``encode_items``."""
    return _decode(kept)


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The conversation for a chat template. Calls in a row are one message, with the words before them.

    Raises ``InvalidRequest`` for the output of a call that nobody made.
    """
    messages: list[Message] = []
    calls: set[str] = set()
    for item in items:
        if isinstance(item, MessageItem):
            messages.append(Message(role=item.role, content=_chat_content(item.content)))
        elif isinstance(item, FunctionCallItem):
            calls.add(item.call_id)
            if not messages or messages[-1].role != "assistant":
                messages.append(Message(role="assistant", content=""))
            call = ToolCall(FunctionCall(item.name, item.arguments), id=item.call_id)
            messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
        else:
            if item.call_id not in calls:
                raise InvalidRequest("input has the output of a call that was not made before it", field="input")
            messages.append(Message(role="tool", content=_chat_content(item.output), tool_call_id=item.call_id))
    return messages


def _parsed(item: dict[str, Any], place: str) -> Item:
    kind = item.get("type") or "message"
    if not isinstance(kind, str):
        raise InvalidRequest(f"{place}.type must be a text", field=f"{place}.type")
    if kind not in _KINDS:
        raise Unsupported(f"{place} is of type {kind[:100]!a}: this server knows {', '.join(_KINDS)}", field=place)
    try:
        parsed = convert({**item, "type": kind}, _KINDS[kind])
    except InvalidRequest as error:
        within = f"{place}.{error.field}" if error.field else place
        raise InvalidRequest(f"{place}: {error}", field=within) from None
    if isinstance(parsed, MessageItem):
        parsed.content = _parts(parsed.role, parsed.content, f"{place}.content")
        parsed.id = parsed.id or new_item_id("msg")
        parsed.status = parsed.status or "completed"
    elif isinstance(parsed, FunctionCallItem):
        _json_object(parsed.arguments, f"{place}.arguments")
        parsed.id = parsed.id or new_item_id("fc")
    else:
        if not isinstance(parsed.output, str):
            parsed.output = _parts("user", parsed.output, f"{place}.output")
        parsed.id = parsed.id or new_item_id("fco")
    return parsed


def _check_plain(message: Message, place: str) -> None:
    for name in ("name", "reasoning", "reasoning_content", "refusal", "annotations"):
        if getattr(message, name):
            raise Unsupported(f"{place}.{name} is not supported: items have none", field=f"{place}.{name}")
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(f"{place}.content is missing", field=f"{place}.content")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"{place}.tool_calls belongs to the assistant only", field=f"{place}.tool_calls")


def _message(role: Any, content: list[dict[str, Any]]) -> MessageItem:
    return MessageItem(id=new_item_id("msg"), status="completed", role=role, content=content)


def _parts(role: str, content: str | list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [_text_part(role, content)]
    return [_part(role, part, f"{place}[{index}]") for index, part in enumerate(content)]


def _part(role: str, part: dict[str, Any], place: str) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _MEDIA:
        raise Unsupported(f"{place} is of type {kind}: models of this server take text only", field=place)
    try:
        if kind == "refusal":
            return _text_part(role, convert(part, RefusalPart).refusal)
        return _text_part(role, convert(part, TextPart).text)
    except InvalidRequest as error:
        within = f"{place}.{error.field}" if error.field else place
        raise InvalidRequest(f"{place}: {error}", field=within) from None


def _text_part(role: str, text: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _texts(content: str | list[dict[str, Any]] | None, place: str) -> list[str]:
    if content is None or isinstance(content, str):
        return [content] if content else []
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise Unsupported(f"{place}.content takes texts only", field=f"{place}.content")
    return [str(text) for text in texts]


def _chat_content(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One part is its text: what templates expect of all messages."""
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _json_object(text: str, place: str) -> str:
    try:
        value = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{place} must be the text of a JSON object", field=place)
    return text
