"""Log-probabilities from the core's plain arrays to what users read."""

from collections.abc import Callable

from vllm_engine.messages import PositionLogprobs
from vllm_engine.outputs import Logprob

TokenText = Callable[[int], str | None]


def read_position(position: PositionLogprobs, token_text: TokenText | None) -> dict[int, Logprob]:
    """Token id -> ``Logprob`` at one position: the token that stands there first, then the most likely in order.

    Without ``token_text`` the tokens have no text.
    """
    text = token_text or _no_text
    ids, values = position.token_ids, position.logprobs
    result = {ids[0]: Logprob(values[0], position.rank, text(ids[0]))}
    for rank, (token_id, value) in enumerate(zip(ids[1:], values[1:], strict=True), start=1):
        if token_id not in result:
            result[token_id] = Logprob(value, rank, text(token_id))
    return result


def _no_text(_token_id: int) -> None:
    return None
