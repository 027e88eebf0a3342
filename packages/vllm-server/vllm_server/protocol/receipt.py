"""What became of a request: where its time went, and how many tokens were computed for it."""

import msgspec


class Receipt(msgspec.Struct):
    """Times in seconds, each from the end of the one before, so that they add up to ``total_time``.

    With several prompts or completions a time ends when the first of them is so far; ``decode_time`` ends with the last
    token of all. ``prompt_tokens`` counts each prompt once; ``cached_tokens`` and ``computed_tokens`` count it for each
    completion, as each finds tokens of its own in the prefix cache. What is computed again after a preemption is
    not counted.
    """

    preparation_time: float
    """From the head of the request to tokens: reading, checking, rendering, tokenizing."""
    queue_time: float
    prefill_time: float
    decode_time: float
    delivery_time: float
    """From the last token to this receipt: decoding, writing, and a client that reads slowly."""
    total_time: float
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    preemptions: int
