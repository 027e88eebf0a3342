"""Conversations that are too long for the model, shortened where a request asks for that."""

import dataclasses

from vllm_engine.frontend.prompts import Prompt
from vllm_server.context import ServerContext
from vllm_server.prompts.conversation import Conversation
from vllm_server.prompts.rendering import render

QUICK_CHARS = 8192
"""A longer text is tokenized in a thread."""
_FREE_SHARE = 8


async def shortened_prompt(conversation: Conversation, context: ServerContext, room: int) -> tuple[Prompt, str, int]:
    """The prompt, its text and the number of messages that were left out, so that ``room`` tokens can follow.

    A conversation that fits is left alone. Otherwise its oldest turns go, as few as leave an eighth of the model's
    length (and ``room``) free: the next answers have some use of that. A turn is a message of the user and what follows
    it. Messages of the system stay, and the last turn does: when that is too long, the engine refuses it.
    """
    length = context.llm.ready.max_model_len
    text, ids = await _tokens(conversation, context)
    if len(ids) + room <= length:
        return {"prompt": text, "prompt_token_ids": ids}, text, 0
    starts = [index for index, message in enumerate(conversation.messages) if message["role"] == "user"][1:]
    limit = length - max(room, length // _FREE_SHARE)
    best, low, high = conversation, 0, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        shorter = _without(conversation, starts[middle])
        shorter_text, shorter_ids = await _tokens(shorter, context)
        if len(shorter_ids) <= limit:
            high = middle - 1
        else:
            low = middle + 1
        if len(shorter_ids) <= limit or middle == len(starts) - 1:
            best, text, ids = shorter, shorter_text, shorter_ids
    return {"prompt": text, "prompt_token_ids": ids}, text, len(conversation.messages) - len(best.messages)


def _without(conversation: Conversation, start: int) -> Conversation:
    """What is left when everything before message ``start`` goes, but for the system's."""
    kept = [message for message in conversation.messages[:start] if message["role"] == "system"]
    return dataclasses.replace(conversation, messages=[*kept, *conversation.messages[start:]])


async def _tokens(conversation: Conversation, context: ServerContext) -> tuple[str, list[int]]:
    text = await render(conversation, context)
    return text, await tokens_of(text, context)


async def tokens_of(text: str, context: ServerContext) -> list[int]:
    """The token ids of a rendered conversation, which has its special tokens in it."""
    tokenizer = context.llm.get_tokenizer()
    if len(text) <= QUICK_CHARS:
        return tokenizer.encode(text, False)
    return await context.llm.in_renderer(lambda: tokenizer.encode(text, False))
