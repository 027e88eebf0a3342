"""The ``prompt`` field: one text, one list of token ids, or a list in which both may stand."""

from typing import Any

from vllm_engine.errors import InvalidRequest

MAX_PROMPTS = 1024
"""Most prompts in one request."""
MAX_CHOICES = 4096
"""Most completions in one request: prompts times ``n``."""


def parse_prompts(value: str | list[Any], n: int) -> list[str | list[int]]:
    """The prompts of one request, checked for shape. Raises ``InvalidRequest`` naming the place."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequest("prompt must not be empty", field="prompt")
    if _is_int(value[0]):
        return [_token_ids(value, "prompt")]
    check_count(len(value), n, "prompt")
    return [_one_of_many(item, index) for index, item in enumerate(value)]


def check_count(prompts: int, n: int, field: str) -> None:
    """Raises ``InvalidRequest`` naming ``field`` for more prompts or completions than a request may have."""
    if prompts > MAX_PROMPTS or prompts * n > MAX_CHOICES:
        raise InvalidRequest(
            f"{field} takes at most {MAX_PROMPTS} prompts, and {MAX_CHOICES} times n in all", field=field
        )


def _one_of_many(item: Any, index: int) -> str | list[int]:
    if isinstance(item, str):
        return item
    if isinstance(item, list):
        return _token_ids(item, f"prompt[{index}]")
    raise InvalidRequest(
        f"prompt[{index}]: prompt is a text, a list of token ids, or a list of texts and such lists", field="prompt"
    )


def _token_ids(value: list[Any], place: str) -> list[int]:
    if not value:
        raise InvalidRequest(f"{place} must not be empty", field="prompt")
    if set(map(type, value)) != {int} or min(value) < 0:  # there may be millions
        raise InvalidRequest(f"{place} must hold token ids: integers of at least 0", field="prompt")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
