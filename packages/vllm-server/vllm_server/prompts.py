"""The ``prompt`` field: one text, one list of token ids, or a list of either."""

import asyncio
from typing import TYPE_CHECKING, Any

from vllm_engine.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM

MAX_PROMPTS = 1024
"""Most prompts in one request."""
MAX_CHOICES = 4096
"""Most completions in one request: prompts times ``n``."""

_LONG_TEXT = 4096  # characters, beyond which tokenisation leaves the event loop

Prompt = str | list[int]


def parse_prompts(value: str | list[Any], n: int) -> list[Prompt]:
    """The prompts of one request, checked for shape. Raises ``InvalidRequest`` naming the place."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequest("prompt must not be empty", field="prompt")
    if _is_int(value[0]):
        return [_token_ids(value, "prompt")]
    if len(value) > MAX_PROMPTS or len(value) * n > MAX_CHOICES:
        raise InvalidRequest(
            f"prompt takes at most {MAX_PROMPTS} prompts, and {MAX_CHOICES} times n in all", field="prompt"
        )
    if isinstance(value[0], str):
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise _mixed(index)
        return value
    if isinstance(value[0], list):
        prompts: list[Prompt] = []
        for index, item in enumerate(value):
            if not isinstance(item, list):
                raise _mixed(index)
            prompts.append(_token_ids(item, f"prompt[{index}]"))
        return prompts
    raise _mixed(0)


async def tokenize(llm: "AsyncLLM", text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text; a long one is cut up in a thread, so that other requests go on meanwhile.

    Raises ``Unsupported`` when the engine runs without a tokenizer.
    """
    tokenizer = llm.tokenizer
    if tokenizer is None:
        raise Unsupported("this server has no tokenizer: it takes token ids only", field="prompt")
    if len(text) < _LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)


def _token_ids(value: list[Any], place: str) -> list[int]:
    if not value:
        raise InvalidRequest(f"{place} must not be empty", field="prompt")
    if not all(_is_int(item) and item >= 0 for item in value):
        raise InvalidRequest(f"{place} must hold token ids: integers of at least 0", field="prompt")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mixed(index: int) -> InvalidRequest:
    return InvalidRequest(
        f"prompt[{index}]: prompt is a text, a list of texts, a list of token ids, or a list of such lists",
        field="prompt",
    )
