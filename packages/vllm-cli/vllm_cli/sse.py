"""Server-sent events: bytes as the network delivers them in, whole events out.

Follows the parsing rules of the HTML Living Standard, section 9.2.6 ("Interpreting an event stream").
"""

from dataclasses import dataclass

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; ``data`` has its lines joined by a newline."""

    data: str
    event: str = "message"


class SSEDecoder:
    """Cuts a byte stream into events, whatever the borders of the chunks it comes in.

    A line ends at LF, CR or CRLF. An event that the stream does not close with an empty line is never given out.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._at_start = True
        self._after_cr = False
        self._data: list[str] = []
        self._event = ""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that ``chunk`` completes, oldest first."""
        if chunk.startswith(b"data: ") and not self._line and not self._data and not self._event:
            text = _only_event(chunk)
            if text is not None:
                self._at_start = self._after_cr = False
                return [ServerSentEvent(text)]
        if self._after_cr and chunk:
            # The CR at the end of the last chunk already ended the line; its LF belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if chunk.endswith(b"\r"):
            self._after_cr = True
        self._line += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        return [event for line in lines if (event := self._take_line(bytes(line))) is not None]

    def _take_line(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", errors="replace")
        # A comment has an empty name; "id" and "retry" concern reconnecting, which an answer does not survive.
        if name == b"data":
            self._data.append(text)
        elif name == b"event":
            self._event = text
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return ServerSentEvent("\n".join(data), event or "message") if data else None


def _only_event(chunk: bytes) -> str | None:
    """The data of the one event that a chunk consists of, as nearly all do; None for anything less simple."""
    if chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2 and b"\r" not in chunk:
        return chunk[len(b"data: ") : -2].decode("utf-8", errors="replace")
    return None
