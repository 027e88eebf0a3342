"""Lines in the log about requests: one at the end of each, and what was generated, if that is wanted."""

import logging
from typing import Any

from vllm_engine.frontend.request_log import shortened
from vllm_engine.logging import get_logger
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind
from vllm_server.telemetry.request_record import RequestRecord

logger = get_logger(__name__)

_POLLED = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that make nothing, and come every few seconds from those who watch the server."""


class RequestLog:
    """Logs requests: what they were and what they took, never what stands in their headers and prompts.

    Each record carries the same facts as ``fields``, which ``vllm_engine.logging.JsonFormatter`` writes as JSON.
    """

    def __init__(self, *, outputs: bool = False, deltas: bool = False, max_len: int | None = None) -> None:
        """``outputs``: log what is generated, with ``deltas`` parts of streams, too; ``max_len``: so much of it."""
        self._outputs = outputs
        self._deltas = deltas
        self._max_len = max_len

    def on_output(self, record: RequestRecord, index: int, output: RequestOutput, kind: OutputKind) -> None:
        """An output of prompt ``index`` is on its way to the client."""
        if not self._outputs or not logger.isEnabledFor(logging.INFO):
            return
        for completion in output.outputs:
            if kind is OutputKind.DELTA:
                record.keep_output(index, completion.index, completion.text, completion.token_ids)
                if self._deltas:
                    self._tell(record, "delta", index, completion.index, completion.text, completion.token_ids)
            elif completion.finished:
                record.keep_output(index, completion.index, completion.text, completion.token_ids)

    def on_end(self, record: RequestRecord) -> None:
        """The answer is out, or the client is gone."""
        if record.method in _POLLED or not logger.isEnabledFor(logging.INFO):
            return
        for (index, number), (text, token_ids) in record.kept_outputs().items():
            self._tell(record, "output", index, number, text, token_ids)
        fields = record.facts()
        told = ", ".join(f"{name} {value}" for name, value in fields.items() if name != "request_id")
        logger.info("request %s ended: %s", record.label, told, extra={"fields": {"event": "request", **fields}})

    def _tell(
        self, record: RequestRecord, event: str, index: int, number: int, text: str, token_ids: list[int]
    ) -> None:
        fields: dict[str, Any] = {
            "event": event,
            "request_id": record.label,
            "response_id": record.response_id,
            "prompt_index": index,
            "completion_index": number,
            "text": text[: self._max_len],
            "token_ids": token_ids[: self._max_len],
        }
        logger.info(
            "request %s (%s): %s of prompt %d, completion %d: %s, token ids %s",
            record.label,
            record.response_id,
            event,
            index,
            number,
            shortened(text, self._max_len),
            shortened(token_ids, self._max_len),
            extra={"fields": fields},
        )
