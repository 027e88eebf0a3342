"""What streams of generated text have in common, whatever the API."""

import json
from typing import Any

from vllm_bench.records import RequestRecord

STREAMING = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields that ask for a stream with token counts at its end."""


def error_of(content: dict[str, Any]) -> str | None:
    """What an error event says; None for any other event."""
    return f"error in the stream: {json.dumps(content['error'])[:200]}" if "error" in content else None


def read_usage(content: dict[str, Any], record: RequestRecord) -> None:
    """Token counts, where an event carries them."""
    usage = content.get("usage")
    if usage:
        record.prompt_tokens = usage.get("prompt_tokens")
        record.completion_tokens = usage.get("completion_tokens")


def complaint(record: RequestRecord) -> str | None:
    """An answer of nothing. Tokens that make no text (special ones) are an answer, of unknown time to first token."""
    if record.text_times or record.completion_tokens:
        return None
    return "the answer has no text; with --ignore-eos a model cannot end at once"
