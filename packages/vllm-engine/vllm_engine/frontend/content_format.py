"""How the content of messages reaches a chat template: as one text, or as a list of parts, whichever it reads."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args

from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.frontend.template_engine import SlowTemplate, render_template

ContentFormat = Literal["auto", "string", "openai"]
"""``string``: one text. ``openai``: a list of ``{"type": "text", "text": ...}``. ``auto``: what the template reads, and
where it reads both, what the client has sent."""

# Neither of these is printable, so that Python's way to write a list does not hold them as they are.
_FIRST, _SECOND = "\ue000\ue001", "\ue002\ue003"
_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}


def check_content_format(value: object) -> ContentFormat:
    """The format of that name. Raises ``InvalidRequest`` for anything else."""
    for known in get_args(ContentFormat):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequest(
        f"chat_template_content_format must be one of {', '.join(get_args(ContentFormat))}",
        field="chat_template_content_format",
    )


def shape_content(
    conversation: list[dict[str, Any]], format: ContentFormat, template: str, special_tokens: Mapping[str, str]
) -> None:
    """Bring the contents of prepared messages, texts or lists of text parts, into a format. Works in place."""
    tokens = tuple(sorted(special_tokens.items()))
    for message in conversation:
        role, content = message["role"], message.get("content")
        if isinstance(content, list):
            if format == "string" or (format == "auto" and not _reads(template, tokens, role, as_parts=True)):
                message["content"] = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and (
            format == "openai" or (format == "auto" and _reads_parts_only(template, tokens, role))
        ):
            message["content"] = _parts(content)


def _reads_parts_only(template: str, special_tokens: tuple[tuple[str, str], ...], role: str) -> bool:
    as_text = _reads(template, special_tokens, role, as_parts=False)
    return not as_text and _reads(template, special_tokens, role, as_parts=True)


@lru_cache(maxsize=64)
def _reads(template: str, special_tokens: tuple[tuple[str, str], ...], role: str, *, as_parts: bool) -> bool:
    """Whether the text of a message of that role comes out when its content is in that form.

    Found out by rendering, as templates have many ways to walk through parts, and may do so for some roles only. One
    that cannot be rendered, or that writes a list down as such, does not read it.
    """
    in_parts = role != "user" and _reads_parts_only(template, special_tokens, "user")
    user = {"role": "user", "content": _parts("x") if in_parts else "x"}
    probe = {"role": role, "content": _parts(_FIRST, _SECOND) if as_parts else _FIRST + _SECOND}
    conversation = {
        "user": [probe],
        "system": [probe, user],
        "assistant": [user, probe, user],
        "tool": [
            user,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {**probe, "tool_call_id": _CALL["id"], "name": "f"},
        ],
    }.get(role)
    if conversation is None:
        return not as_parts
    variables = {
        **dict(special_tokens),
        "messages": conversation,
        "tools": None,
        "add_generation_prompt": role != "assistant",
    }
    try:
        text = render_template(template, variables, from_request=True)
    except SlowTemplate:
        raise  # with more time, another answer: this one is not to be remembered
    except (InvalidRequest, ConfigError):
        return False
    first, second = text.find(_FIRST), text.find(_SECOND)
    is_json = as_parts and f'"{_FIRST}"' in text
    return 0 <= first < second and not is_json


def _parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]
