"""Texts to token ids for the routes that generate nothing, without holding up anyone else."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.context import ServerContext

if TYPE_CHECKING:
    from vllm_engine.frontend.tokenizer import Tokenizer

T = TypeVar("T")

QUICK = 8192
"""Characters or tokens, beyond which the work leaves the event loop."""
MAX_BYTES = 1 << 22
"""Of UTF-8, and so most tokens, of one request: far more than any model reads, and a hundred times that in memory."""


def tokenizer_of(context: ServerContext, field: str | None) -> "Tokenizer":
    """The tokenizer. Raises ``Unsupported`` naming ``field`` where there is none."""
    tokenizer = context.llm.tokenizer
    if tokenizer is None:
        raise Unsupported("this server has no tokenizer: it takes token ids only", field=field)
    return tokenizer


async def encode(context: ServerContext, text: str, field: str, *, special: bool) -> list[int]:
    """The token ids of a text; ``special``: with those that the tokenizer adds around it.

    Raises ``InvalidRequest`` naming ``field`` for a text that is too long, ``Unsupported`` without a tokenizer.
    """
    tokenizer = tokenizer_of(context, field)
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        raise InvalidRequest(f"{field} takes at most {MAX_BYTES} bytes of UTF-8", field=field)
    return await aside(context, lambda: tokenizer.encode(text, special), size=len(text))


async def aside(context: ServerContext, work: Callable[[], T], *, size: int) -> T:
    """The result of ``work`` on so many characters or tokens: done at once if they are few, else in a thread."""
    return await context.llm.in_renderer(work, size=size) if size > QUICK else work()
