"""How many tokens there were, and whether those who counted agree."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm_bench.records import RequestRecord


def total_input_tokens(records: Sequence[RequestRecord]) -> int | None:
    """Prompt tokens by the server's usage, else by the workload's own count; None when a request has neither."""
    total = 0
    for record in records:
        tokens = record.prompt_len if record.prompt_tokens is None else record.prompt_tokens
        if tokens is None:
            return None
        total += tokens
    return total


def usage_check(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Who counted the output, and what ``input_token_check`` has."""
    counted = all(record.completion_tokens is not None for record in records)
    return {"tokens_counted_by": "usage" if counted else "chunks", **input_token_check(records)}


def input_token_check(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """How the server's prompt counts compare with the workload's own.

    A server adds the same few tokens to each sequence (a BOS, a chat template): the most common difference is taken
    for these, and a request with another one is a mismatch. None where there is nothing to compare.
    """
    differences = Counter(
        _plain((record.prompt_tokens - record.prompt_len) / record.num_inputs)
        for record in records
        if record.prompt_tokens is not None and record.prompt_len is not None
    )
    common = differences.most_common(1)
    return {
        "prompt_tokens_added": common[0][0] if common else None,
        "prompt_token_mismatches": differences.total() - common[0][1] if common else None,
    }


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() else number
