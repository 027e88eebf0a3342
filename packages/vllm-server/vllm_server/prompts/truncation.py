"""Conversations that are too long for the model, shortened where a request asks for that."""

import dataclasses
from itertools import accumulate
from typing import Any

from vllm_engine.frontend.prompts import Prompt
from vllm_server.context import ServerContext
from vllm_server.prompts.conversation import Conversation
from vllm_server.prompts.rendering import render

QUICK_CHARS = 8192
"""A longer text is tokenized in a thread."""
_FREE_SHARE = 8


@dataclasses.dataclass(frozen=True, slots=True)
class FittingPrompt:
    """A prompt, its text, and the number of messages that were left out of it."""

    prompt: Prompt
    text: str
    dropped: int


async def fitting_prompt(conversation: Conversation, context: ServerContext, room: int) -> FittingPrompt:
    """The prompt of a conversation from which so much is left out that ``room`` tokens can follow.

    One that fits is left alone. Otherwise its oldest turns go, as few as leave an eighth of the model's length (and
    ``room``) free: the next answers have some use of that. A turn is a message of the user and what follows it.
    Messages of the system stay, and so does the last turn: where that is too long, the engine refuses the prompt.
    """
    length = context.llm.ready.max_model_len
    most_chars = length * context.llm.get_tokenizer().longest_token
    users = [index for index, message in enumerate(conversation.messages) if message["role"] == "user"]
    starts = [0, *users[1:]]
    low, high = _first_candidate(conversation, starts, most_chars), len(starts) - 1
    shortened = length - max(room, length // _FREE_SHARE)
    limit = length - room if low == 0 else shortened
    best = None
    while low <= high:
        # The whole conversation first, which fits most often; then halves of what there is.
        middle = 0 if low == 0 else (low + high) // 2
        shorter = conversation if middle == 0 else _without(conversation, starts[middle])
        text = await render(shorter, context)
        # No need to count the tokens of what cannot fit, of which there may be many.
        ids = await tokens_of(text, context) if len(text) <= most_chars else None
        fits = ids is not None and len(ids) <= limit
        if fits or middle == len(starts) - 1:
            prompt: Prompt = {"prompt": text, "add_special_tokens": False}
            if ids is not None:
                prompt = {"prompt": text, "prompt_token_ids": ids}
            best = FittingPrompt(prompt, text, len(conversation.messages) - len(shorter.messages))
        if middle == 0:
            if best is not None:
                return best
            limit = shortened
        low, high = (low, middle - 1) if fits else (middle + 1, high)
    if best is None:
        raise RuntimeError("the last turn is always tried")
    return best


async def tokens_of(text: str, context: ServerContext) -> list[int]:
    """The token ids of a rendered conversation, which has its special tokens in it."""
    tokenizer = context.llm.get_tokenizer()
    if len(text) <= QUICK_CHARS:
        return tokenizer.encode(text, False)
    return await context.llm.in_renderer(lambda: tokenizer.encode(text, False), size=len(text))


def _first_candidate(conversation: Conversation, starts: list[int], most_chars: int) -> int:
    """The first of ``starts`` from which on there are at most so many characters, or the last one."""
    sizes = [_chars(message["content"]) for message in conversation.messages]
    from_here = list(accumulate(reversed(sizes)))[::-1]
    fitting = (number for number, start in enumerate(starts) if from_here[start] <= most_chars)
    return next(fitting, len(starts) - 1)


def _chars(content: Any) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)


def _without(conversation: Conversation, start: int) -> Conversation:
    """What is left when everything before message ``start`` goes, but for the system's."""
    kept = [message for message in conversation.messages[:start] if message["role"] == "system"]
    return dataclasses.replace(conversation, messages=[*kept, *conversation.messages[start:]])
