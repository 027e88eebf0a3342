"""A line in the log for each request, and at level DEBUG one with its prompt."""

import logging
from typing import Any

from vllm_engine.frontend.input_processor import PreparedRequest
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

MAX_PARAMS_CHARS = 2000
"""Longest text of the parameters of a request in the log."""


class RequestLog:
    """Logs requests. What comes from a client is written as Python writes it, so that it cannot forge a line."""

    def __init__(self, max_len: int | None = None) -> None:
        """``max_len`` is the most characters and the most token ids of a prompt in the log; None is no limit."""
        self._max_len = max_len

    def write(self, request: PreparedRequest) -> None:
        """Label, number of tokens and parameters at level INFO; text and token ids at level DEBUG."""
        if not logger.isEnabledFor(logging.INFO):
            return
        label, params = repr(request.request_id)[1:-1], repr(request.params)
        if len(params) > MAX_PARAMS_CHARS:
            params = params[:MAX_PARAMS_CHARS] + "..."
        num_tokens = len(request.prompt_token_ids)
        fields = {"event": "request_begins", "response_id": request.request_id, "prompt_tokens": num_tokens}
        logger.info("request %s: %d prompt tokens, %s", label, num_tokens, params, extra={"fields": fields})
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "request %s: prompt %s, token ids %s",
                label,
                shortened(request.prompt, self._max_len),
                shortened(request.prompt_token_ids, self._max_len),
            )


def shortened(value: Any, max_len: int | None) -> str:
    """A text or list as Python writes it, or so much of its beginning, and how long it is."""
    if value is None or max_len is None or len(value) <= max_len:
        return repr(value)
    return f"{value[:max_len]!r}... ({max_len} of {len(value)})"
