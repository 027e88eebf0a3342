"""Receipts in answers: who wants one, and where it stands."""

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from vllm_engine.errors import InvalidRequest
from vllm_server.protocol.receipt import Receipt
from vllm_server.telemetry.request_record import RequestRecord, current_record

HEADER = "x-vllm-include-receipt"
_WORDS = {"true": True, "1": True, "false": False, "0": False}


class ReceiptBook:
    """Writes the receipt of one request, if it is wanted: as late as may be, so that no time is missing."""

    def __init__(self, record: RequestRecord | None) -> None:
        """``record``: of the request; None where no receipt is wanted."""
        self._record = record

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to write."""
        return self._record is not None

    def receipt(self) -> Receipt | UnsetType:
        """The receipt as of now."""
        return UNSET if self._record is None else self._record.receipt()

    def sealed(self, answer: msgspec.Struct) -> bytes:
        """The JSON of a whole answer, an object, with the receipt as its last field.

        The receipt is made after the rest is written: log-probabilities of a long answer take milliseconds.
        """
        body = msgspec.json.encode(answer)
        if self._record is None:
            return body
        return b'%b,"receipt":%b}' % (body[:-1], msgspec.json.encode(self._record.receipt()))


def receipt_book(raw: Request, wanted: bool | None) -> ReceiptBook:
    """For a request, whose field (``wanted``) wins over its header.

    Raises ``InvalidRequest`` for a header that says neither.
    """
    if wanted is None:
        word = raw.headers.get(HEADER, "false").strip().lower()
        if word not in _WORDS:
            raise InvalidRequest(f"{HEADER} must be true or false", field=HEADER)
        wanted = _WORDS[word]
    return ReceiptBook(current_record() if wanted else None)
