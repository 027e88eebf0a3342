"""HTTP/1.1 as uvicorn speaks it, with bounds on what comes before and after the body of a request.

The parser itself has none: one connection could fill the memory with a header that never ends.
"""

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vllm_server.errors import ErrorBody, ErrorDetail


class _TooMuch(Exception):
    """Ends the parser's work on a request. Its text is for the client."""


class _BoundedProtocol(HttpToolsProtocol):
    """One connection. Beyond the bounds, it is answered with 431 and closed; what is no HTTP, with 400."""

    max_head_bytes: int
    max_headers: int

    _refusal: str | None = None
    _beside_body = 0
    """Bytes since the request began, or a piece of its body did, that are none of its body."""

    def data_received(self, data: bytes) -> None:
        """What the event loop has read."""
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > self.max_head_bytes and not self.transport.is_closing():
            self._refusal = self._too_long()
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one that follows a body in pieces."""
        if len(self.headers) >= self.max_headers:
            self._refusal = f"The request has more than {self.max_headers} headers."
            raise _TooMuch(self._refusal)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._refusal = self._too_long()
            raise _TooMuch(self._refusal)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A piece of a body begins."""
        self._beside_body = 0

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self._beside_body = max(0, self._beside_body - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; what else was read belongs to the next one, and is at most one reading."""
        self._beside_body = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # in the midst of another answer
            return
        line = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" if self._refusal else b"HTTP/1.1 400 Bad Request\r\n"
        code = "headers_too_large" if self._refusal else "no_http"
        detail = ErrorDetail(self._refusal or "This is no HTTP/1.1 request.", "invalid_request_error", None, code)
        body = msgspec.json.encode(ErrorBody(detail))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(line + head + body)
        self.transport.close()

    def _too_long(self) -> str:
        return f"The first line and the headers of the request have more than {self.max_head_bytes} bytes."


def bounded_protocol(max_head_bytes: int, max_headers: int) -> type[HttpToolsProtocol]:
    """The class of connections with these bounds, for ``uvicorn.Config``."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"max_head_bytes": max_head_bytes, "max_headers": max_headers})
