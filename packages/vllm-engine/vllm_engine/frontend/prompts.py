"""The forms in which a prompt can be given, brought to one."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from vllm_engine.errors import InvalidRequest, Unsupported, shown


class PromptDict(TypedDict):
    """A prompt with its options. ``prompt`` (text) or ``prompt_token_ids`` must be there; given both, the ids count.

    ``prompt_embeds`` instead of the two: a tensor or numpy array [tokens, hidden size], see ``frontend.prompt_embeds``.
    ``cache_salt``: share the prefix cache only with requests of the same salt.
    ``add_special_tokens``: False for text that holds its special tokens already, such as a rendered chat.
    """

    prompt: NotRequired[str]
    prompt_token_ids: NotRequired[list[int]]
    prompt_embeds: NotRequired[Any]
    cache_salt: NotRequired[str]
    add_special_tokens: NotRequired[bool]


Prompt = str | list[int] | PromptDict

MODALITY_KEYS = ("multi_modal_data", "multi_modal_uuids", "mm_processor_kwargs", "encoder_prompt")


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt with all its options; ``text``, ``token_ids`` or both, or ``embeds`` alone."""

    text: str | None
    token_ids: list[int] | None
    cache_salt: str | None = None
    add_special_tokens: bool = True
    embeds: Any = None


def parse_prompt(prompt: Prompt) -> ParsedPrompt:
    """Check the form of a prompt. Raises ``InvalidRequest`` for any other."""
    if isinstance(prompt, str):
        return ParsedPrompt(prompt, None)
    if isinstance(prompt, list):
        return ParsedPrompt(None, _token_ids(prompt))
    if isinstance(prompt, dict):
        return _parse_dict(dict(prompt))
    raise InvalidRequest(
        f"prompt must be a text, a list of token ids or a dict, got a {type(prompt).__name__}", field="prompt"
    )


def _parse_dict(prompt: dict[str, Any]) -> ParsedPrompt:
    for key in MODALITY_KEYS:
        if prompt.pop(key, None) is not None:
            raise Unsupported(f"prompt has {key}: this model takes text only", field="prompt")
    text = prompt.pop("prompt", None)
    if text is not None and not isinstance(text, str):
        raise InvalidRequest("prompt must be a text", field="prompt")
    token_ids = prompt.pop("prompt_token_ids", None)
    embeds = prompt.pop("prompt_embeds", None)
    if embeds is not None and (text or token_ids is not None):
        raise InvalidRequest("a prompt is either prompt_embeds or text or token ids, not both", field="prompt_embeds")
    if text is None and token_ids is None and embeds is None:
        raise InvalidRequest("a prompt dict needs prompt, prompt_token_ids or prompt_embeds", field="prompt")
    salt = prompt.pop("cache_salt", None)
    add_special_tokens = prompt.pop("add_special_tokens", True)
    if not isinstance(add_special_tokens, bool):
        raise InvalidRequest("add_special_tokens must be true or false", field="add_special_tokens")
    if prompt:
        raise InvalidRequest(f"a prompt dict has no key {shown(next(iter(prompt)))}", field="prompt")
    if embeds is not None:
        return ParsedPrompt(None, None, salt, add_special_tokens, embeds)
    return ParsedPrompt(text, None if token_ids is None else _token_ids(token_ids), salt, add_special_tokens)


def _token_ids(value: Any) -> list[int]:
    """A list of integers; whether they are in the vocabulary is checked later."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise InvalidRequest("prompt_token_ids must be a list of integers", field="prompt")
    return value.copy()  # the caller may go on using theirs while the request runs
