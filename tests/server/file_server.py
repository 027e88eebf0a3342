"""A server for files on a loopback port: gives one, takes one, and fails as it is told."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FileServer:
    """``script`` has what to do with the next requests, in turn; when it is empty, they go well.

    A number        answer with that status
    ``drop``        close the connection without a word
    ``cut``         close it in the middle of the file
    ``silent``      say nothing until the server ends
    ``early``       refuse (403) before the body is read
    (status, URL)   redirect
    """

    url: str = ""
    content: bytes = b""
    script: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def stored(self) -> bytes:
        """The body of the last request that went well."""
        return self.seen[-1].body


@contextmanager
def serving(content: bytes = b"", tls: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """A running server."""
    server = FileServer(content=content)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._handle()

        def do_PUT(self) -> None:
            self._handle()

        def log_message(self, *args: Any) -> None:
            pass

        def _handle(self) -> None:
            step = server.script.pop(0) if server.script else 200
            size = int(self.headers.get("content-length") or 0)
            early = step == "early"
            body = b"" if early else self.rfile.read(size)
            server.seen.append(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.close_connection = True
            if step == "drop":
                return
            if step == "silent":
                server.ended.wait(20)
                return
            status, location = step if isinstance(step, tuple) else (403 if early else step, None)
            given = server.content if (self.command == "GET" and status == 200) or step == "cut" else b"it said no"
            status = 200 if step == "cut" else status
            self.send_response(status, "secret-words")
            if location is not None:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(given)))
            self.end_headers()
            self.wfile.write(given[: len(given) // 2] if step == "cut" else given)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True)
        http.handle_error = lambda request, address: None  # type: ignore[method-assign] # handshakes that clients end
    server.url = f"http{'' if tls is None else 's'}://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        http.shutdown()
        http.server_close()
        thread.join()
