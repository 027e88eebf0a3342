"""What APIs of generated text have in common."""

import json
from collections.abc import Mapping
from typing import Any

from vllm_bench.records import RequestRecord
from vllm_bench.workload.item import Messages, WorkItem

STREAMING = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields that ask for a stream with token counts at its end."""


def messages_of(item: WorkItem, api: str) -> list[dict[str, Any]]:
    """The item's conversation, or its text as the user's.

    Raises:
        ValueError: it has neither; ``api`` is named in the message.
    """
    if isinstance(item.prompt, Messages):
        return list(item.prompt)
    if isinstance(item.prompt, str):
        return [{"role": "user", "content": item.prompt}]
    if isinstance(item.prompt, list):
        raise ValueError(f"token ids need --backend openai or openai-embeddings: {api} takes text")
    raise ValueError(f"several texts in one request need --backend openai-embeddings or vllm-rerank, not {api}")


def wanted_logprobs(options: Mapping[str, Any]) -> int | None:
    """``logprobs`` where it is a number, as ``--logprobs`` gives it: APIs ask for it in different ways."""
    value = options.get("logprobs")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def error_of(content: dict[str, Any]) -> str | None:
    """What an error event says; None for any other event."""
    error = content.get("error")
    return None if error is None else f"error in the answer: {json.dumps(error)[:200]}"


def read_usage(content: dict[str, Any], record: RequestRecord) -> None:
    """Token counts, where an event carries them."""
    usage = content.get("usage")
    if usage:
        record.prompt_tokens = usage.get("prompt_tokens")
        record.completion_tokens = usage.get("completion_tokens")


def has_silent_token(choices: list[dict[str, Any]]) -> bool:
    """Whether a chunk without text is that of a token: special ones, and parts of a letter, make none.

    Past its natural end (``ignore_eos``) a model makes many. A chunk that only tells the end of an answer has no token,
    nor has the one before a chat's first, which names the role.
    """
    for choice in choices:
        delta = choice.get("delta", choice)
        if delta and not delta.get("role") and choice.get("finish_reason") in (None, "length"):
            return True
    return False


def complaint(record: RequestRecord) -> str | None:
    """An answer of nothing. Tokens that make no text (special ones) are an answer, of unknown time to first token."""
    if record.text_times or record.completion_tokens or any(record.texts):
        return None
    return "the answer has no text; with --ignore-eos a model cannot end at once"
