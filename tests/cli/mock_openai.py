"""An OpenAI-compatible server of the standard library, with known texts, delays and faults.

As a program (``python tests/cli/mock_openai.py --port N``) it stands in for a whole server process.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MockOpenAI(ThreadingHTTPServer):
    """Answers every request with ``answer(body)``, a list of pieces sent as one chunk (one token) each."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models = ["mock-model"]
        self.answer: Callable[[dict[str, Any]], list[str]] = lambda body: ["Hel", "lo ", "wörld", "!"]
        self.first_token_seconds = 0.0
        self.next_token_seconds = 0.0
        self.refuse_with: tuple[int, bytes] | None = None
        """Status and body instead of an answer."""
        self.fail_after: int | None = None
        """Number of pieces after which the stream carries an error event."""
        self.break_after: int | None = None
        """Number of pieces after which the connection is cut."""
        self.piece_bytes: int | None = None
        """Send the stream in pieces of so many bytes, whatever they cut apart."""
        self.report_usage = True
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.disconnected = threading.Event()
        """Set when a client went away in the middle of an answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: a client that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: MockOpenAI

    def log_message(self, format: str, *args: Any) -> None:
        """No access log."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/v1/models":
            self.server.headers_seen.append(dict(self.headers))
            if self.server.refuse_with is not None:
                self._send(*self.server.refuse_with)
                return
            models = [{"id": name, "object": "model"} for name in self.server.models]
            self._send(200, json.dumps({"object": "list", "data": models}).encode())
        else:
            self._send(404, b'{"error": {"message": "no such path"}}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers_seen.append(dict(self.headers))
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            self._send(404, b'{"error": {"message": "no such path"}}')
        elif self.server.refuse_with is not None:
            self._send(*self.server.refuse_with)
        else:
            self._stream(body, chat=self.path == "/v1/chat/completions")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, body: dict[str, Any], *, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in self._events(body, chat=chat):
                if event is None:
                    self.close_connection = True
                    return
                self._write(event)
            self._write(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.server.disconnected.set()

    def _events(self, body: dict[str, Any], *, chat: bool) -> Iterator[bytes | None]:
        """The stream's events; None where the connection is to be cut."""
        server = self.server
        if chat:
            yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        pieces = server.answer(body)
        for number, piece in enumerate(pieces):
            if number == server.fail_after:
                yield _event({"error": {"message": "the engine stumbled", "type": "InternalServerError"}})
                return
            if number == server.break_after:
                yield None
            time.sleep(server.next_token_seconds if number else server.first_token_seconds)
            choice = {"index": 0, "delta": {"content": piece}} if chat else {"index": 0, "text": piece}
            yield _event({"choices": [choice]})
        yield _event({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]})
        if server.report_usage and body.get("stream_options", {}).get("include_usage"):
            yield _event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(pieces)}})

    def _write(self, data: bytes) -> None:
        size = self.server.piece_bytes or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


def _event(content: dict[str, Any]) -> bytes:
    # Not ASCII-only: a multi-byte letter is to be cut apart too.
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


@contextmanager
def running_mock() -> Iterator[MockOpenAI]:
    """A mock server on a free port of the loopback address, until the block ends."""
    with MockOpenAI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--exit-code", type=int, help="end with this code instead of serving")
    options = parser.parse_args()
    time.sleep(options.load_seconds)
    print(f"INFO start-up: weights took {options.load_seconds:.2f} s", file=sys.stderr, flush=True)
    if options.exit_code is not None:
        print("ConfigError: no such model", file=sys.stderr, flush=True)
        sys.exit(options.exit_code)
    with MockOpenAI(options.port) as server:
        server.serve_forever()


if __name__ == "__main__":
    _main()
