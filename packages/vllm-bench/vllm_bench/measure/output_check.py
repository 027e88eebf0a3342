"""The server's own count of its output, held against what can be known of it from outside."""

from collections.abc import Callable, Sequence
from typing import Any

from vllm_bench.records import RequestRecord

TOLERANCE = 0.1
"""Share by which a count may differ from the tokenizer's: a model need not choose the tokens that its text would be
cut into, and its end is a token without text."""
_TOLERANCE_TOKENS = 2


def output_check(
    done: Sequence[RequestRecord], count: Callable[[str], int | None] | None, *, fixed_length: bool = False
) -> dict[str, Any]:
    """How the server's ``completion_tokens`` compare with the texts of the completed requests.

    A count above what was asked for, or (``fixed_length``, where the end of a text is ignored) other than that, is a
    mismatch; with a tokenizer, so is one that differs by more than a tenth and two tokens from the text's.

    Args:
        count: tokens of a text by the model's tokenizer; None when there is none.

    Returns:
        ``output_tokens_retokenized``, the sum by the tokenizer, None without one; ``output_token_mismatches``,
        None when nothing could be compared; ``output_token_mismatch_example``, one of them in words.
    """
    compared = mismatches = retokenized = 0
    example = None
    for record in done:
        found, compares = _complaint(record, fixed_length), record.output_len is not None
        tokens = None if count is None else count("".join(record.texts))
        if tokens is not None:
            retokenized += tokens
            compares = True
            usage = record.completion_tokens
            if usage is not None and found is None and abs(usage - tokens) > TOLERANCE * tokens + _TOLERANCE_TOKENS:
                found = f"the server counts {usage} tokens, the tokenizer {tokens}"
        if record.completion_tokens is not None and compares:
            compared += 1
        if found is not None:
            mismatches += 1
            example = example or found
    return {
        "output_tokens_retokenized": retokenized if count is not None else None,
        "output_token_mismatches": mismatches if compared else None,
        "output_token_mismatch_example": example,
    }


def _complaint(record: RequestRecord, fixed_length: bool) -> str | None:
    """What is wrong with its usage by what was asked for."""
    usage, wanted = record.completion_tokens, record.output_len
    if usage is None or wanted is None:
        return None
    if usage > wanted or (fixed_length and usage != wanted):
        return f"the server counts {usage} tokens where {wanted} were asked for"
    return None
