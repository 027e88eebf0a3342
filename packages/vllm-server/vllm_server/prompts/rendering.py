"""From a conversation to the text that the model reads, without holding up anyone else.

The server's own template is rendered at once, as that takes a fraction of a millisecond; when it does not, it begins
again in a thread. A template that comes with a request has a process of its own.
"""

from functools import partial
from typing import Any

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.frontend.chat_template import render_chat
from vllm_engine.frontend.template_budget import time_limit
from vllm_engine.frontend.template_engine import SlowTemplate
from vllm_server.context import ServerContext
from vllm_server.prompts.conversation import Conversation
from vllm_server.templates.worker import RenderCall

LONG_CONVERSATION = 64
"""Messages, beyond which rendering leaves the event loop."""
QUICK_SECONDS = 0.05
"""So long a template may hold up the event loop."""


async def render(conversation: Conversation, context: ServerContext) -> str:
    """The text of a conversation, special tokens included.

    Raises:
        InvalidRequest: when the template refuses the messages, or takes too long with them.
        Unsupported: without a tokenizer or a template, or for what the template does not read.
    """
    tokenizer = context.llm.tokenizer
    if tokenizer is None:
        raise Unsupported("this server has no tokenizer: it takes token ids only", field="messages")
    options: dict[str, Any] = {
        "tools": conversation.tools,
        "add_generation_prompt": conversation.add_generation_prompt,
        "continue_final_message": conversation.continue_final_message,
        "chat_template": conversation.chat_template or context.chat_template,
        "chat_template_content_format": context.config.chat_template_content_format,
        "must_read": conversation.must_read,
        **(context.config.default_chat_template_kwargs or {}),
        **conversation.template_kwargs,
    }
    if conversation.chat_template is not None:
        call = RenderCall(
            dict(tokenizer.chat_templates), dict(tokenizer.special_tokens_map), conversation.messages, options
        )
        return await context.templates.render(call)
    work = partial(render_chat, tokenizer, conversation.messages, **options)
    try:
        if len(conversation.messages) <= LONG_CONVERSATION:
            try:
                with time_limit(QUICK_SECONDS):
                    return work()
            except SlowTemplate:
                pass
        return await context.llm.in_renderer(work)
    except RecursionError:
        raise InvalidRequest("The conversation is nested too deeply.", field="messages") from None
