"""Log-probabilities in the shapes of the two OpenAI APIs. With a ``logprobs_mode`` of logits, they are these.

JSON knows no infinity: what is less likely than ``FLOOR`` (or is no number) is written as ``FLOOR``.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm_engine.outputs import Logprob
from vllm_server.config import ServerConfig
from vllm_server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from vllm_server.protocol.completions import CompletionLogprobs
from vllm_server.protocol.sampling import SamplingFields

if TYPE_CHECKING:
    from vllm_engine.frontend.tokenizer import Tokenizer

FLOOR = -9999.0

Position = dict[int, Logprob] | None
"""Token id -> its logprob, for one position; None where there is none (the first token of a prompt)."""


class TokenNames:
    """How tokens are shown: as text, or as ``token_id:17`` when that was asked for or there is no tokenizer."""

    def __init__(self, tokenizer: "Tokenizer | None", as_ids: bool) -> None:
        self._tokenizer = None if as_ids else tokenizer

    def text(self, token_id: int) -> str:
        """The token for people to read."""
        return f"token_id:{token_id}" if self._tokenizer is None else self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        """Its UTF-8 bytes: those of several tokens in a row make a character whole."""
        if self._tokenizer is None:
            return list(self.text(token_id).encode())
        return list(self._tokenizer.token_bytes(token_id))


def token_names(request: SamplingFields, tokenizer: "Tokenizer | None", config: ServerConfig) -> TokenNames:
    """How the answer to a request shows tokens: as the request says, else as the server is set up."""
    asked = request.return_tokens_as_token_ids
    return TokenNames(tokenizer, config.return_tokens_as_token_ids if asked is None else asked)


def completion_logprobs(
    token_ids: Sequence[int], positions: Sequence[Position], names: TokenNames, *, offset: int
) -> CompletionLogprobs:
    """The lists of ``/v1/completions``. ``offset`` is where the first token stands in the choice's text."""
    shown = CompletionLogprobs([], [], [], [])
    for token_id, position in zip(token_ids, positions, strict=True):
        text = names.text(token_id)
        shown.text_offset.append(offset)
        shown.tokens.append(text)
        shown.token_logprobs.append(finite(position[token_id].logprob) if position else None)
        shown.top_logprobs.append(_by_text(position, names) if position else None)
        offset += len(text)
    return shown


def chat_logprobs(
    token_ids: Sequence[int], positions: Sequence[dict[int, Logprob]], names: TokenNames, *, num_top: int
) -> ChatLogprobs:
    """The list of ``/v1/chat/completions``, with the ``num_top`` likeliest tokens (-1: all) at each position."""
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        likeliest = sorted(position.items(), key=lambda item: -finite(item[1].logprob))
        if num_top >= 0:
            del likeliest[num_top:]
        content.append(
            TokenLogprob(
                names.text(token_id),
                finite(position[token_id].logprob),
                names.bytes(token_id),
                [TopLogprob(names.text(item), finite(top.logprob), names.bytes(item)) for item, top in likeliest],
            )
        )
    return ChatLogprobs(content)


def prompt_logprobs(positions: Iterable[Position]) -> list[dict[int, dict[str, Any]] | None]:
    """The extension ``prompt_logprobs``: one entry per prompt token, by token id."""
    return [
        {
            token_id: {"logprob": finite(item.logprob), "rank": item.rank, "decoded_token": item.decoded_token}
            for token_id, item in position.items()
        }
        if position
        else None
        for position in positions
    ]


def finite(logprob: float) -> float:
    """The value, or ``FLOOR`` for anything below it, for NaN and for the infinite logits of a broken model."""
    return logprob if FLOOR < logprob < math.inf else FLOOR


def _by_text(position: dict[int, Logprob], names: TokenNames) -> dict[str, float]:
    """Token text -> logprob. Of tokens with the same text the likeliest stands."""
    shown: dict[str, float] = {}
    for token_id, item in position.items():
        text, value = names.text(token_id), finite(item.logprob)
        shown[text] = max(value, shown.get(text, FLOOR))
    return shown
