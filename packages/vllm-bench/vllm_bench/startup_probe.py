"""Asks a server that is just starting: whether it is there, and for a first token."""

import http.client
import json
import ssl
from typing import Any

from vllm_cli.client import api_key_from_environment
from vllm_cli.command import CommandError
from vllm_cli.sse import SSEDecoder

_HEALTH_SECONDS = 5.0
_ANSWER_SECONDS = 600.0
_PIECE_BYTES = 65536
_TOKENS = 16
"""Asked for: the first may be half a letter, which is no text yet."""


class StartupProbe:
    """A client of the server on a port of the loopback address.

    Args:
        port: where it will listen.
        tls: it speaks https; its certificate is not checked, for it is hardly one of this machine's own address.
        api_key: None: that of the environment, if any.
        has_tokenizer: it takes and answers text, else token ids only.
    """

    def __init__(self, port: int, *, tls: bool = False, api_key: str | None = None, has_tokenizer: bool = True) -> None:
        self._port = port
        self._context = _unchecked() if tls else None
        key = (api_key or api_key_from_environment() or "").strip()
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._has_tokenizer = has_tokenizer

    def is_healthy(self) -> bool:
        """Whether ``/health`` answers 200."""
        connection = self._connect(_HEALTH_SECONDS)
        try:
            connection.request("GET", "/health", headers=self._headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_for_token(self) -> None:
        """Ask for a streamed answer and return when its first text has come, or its first token without a tokenizer.

        Raises:
            CommandError: the server refuses, or its answer has none.
        """
        body: dict[str, Any] = {"max_tokens": _TOKENS, "stream": True, "ignore_eos": True}
        body |= {"prompt": "Hello" if self._has_tokenizer else [1]}
        connection = self._connect(_ANSWER_SECONDS)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body).encode(), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                said = response.read(2000).decode(errors="replace")
                raise CommandError(f"the server answered {response.status} to its first request: {said}")
            if not self._has_text(response):
                raise CommandError("the server's first answer has no text")
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise CommandError(f"the server's first answer cannot be read: {error}") from error
        finally:
            connection.close()

    def _has_text(self, response: http.client.HTTPResponse) -> bool:
        decoder = SSEDecoder()
        while piece := response.read1(_PIECE_BYTES):
            for event in decoder.feed(piece):
                if event.data != "[DONE]" and self._is_token(json.loads(event.data)):
                    return True
        return False

    def _is_token(self, event: dict[str, Any]) -> bool:
        if "error" in event:
            raise CommandError(f"the server ended its first answer with an error: {event['error']}")
        return any(choice.get("text") or not self._has_tokenizer for choice in event["choices"])

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=timeout, context=self._context)


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
