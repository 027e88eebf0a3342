"""A small client of an OpenAI-compatible server: the model list, and answers as a stream of text."""

import json
import os
import ssl
from collections.abc import Generator, Mapping
from typing import Any, Self

import httpx

from vllm_cli.command import CommandError
from vllm_cli.sse import SSEDecoder

API_KEY_VARIABLES = ("VLLM_API_KEY", "OPENAI_API_KEY")
"""Where the key comes from when ``--api-key`` is not given; the first that is set."""

_CONNECT_SECONDS = 10.0
_JSON = {"Content-Type": "application/json"}


class Client:
    """Talks to the server at ``url`` (which ends in ``/v1``, as OpenAI clients write it).

    Args:
        headers: more headers of every request; they win over that of the key, whatever their case.
        tls: how to speak to an https server; by default its certificate is checked.

    Every method raises ``CommandError`` with one line for the user: the server cannot be reached, it answered
    with an error, or its answer cannot be understood.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | bool = True,
        option: str = "--url",
    ) -> None:
        self.url = url.rstrip("/")
        self._option = option
        if not self.url.startswith(("http://", "https://")):
            raise CommandError(f"{option} {url!r} must begin with http:// or https://", exit_code=2)
        key = (api_key if api_key is not None else api_key_from_environment() or "").strip()
        try:
            own = httpx.Headers({"Authorization": f"Bearer {key}"} if key else {})
            own.update(headers)
            self._http = httpx.Client(
                headers=own,
                verify=tls,
                # A model may think for minutes before its first token; Ctrl-C is the user's time limit.
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
                # A proxy of the environment is never meant for this machine itself.
                mounts={"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None},
            )
        except UnicodeEncodeError as error:
            raise CommandError("the API key has characters that a header cannot carry", exit_code=2) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def first_model(self) -> str:
        """The id of the first model that the server lists."""
        try:
            response = self._http.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise self._refused(response)
        try:
            model = response.json()["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise CommandError(
                f"{self.url}/models lists no model; is {self.url} an OpenAI-compatible server?"
            ) from error
        return str(model)

    def chat(self, model: str, messages: list[dict[str, str]]) -> Generator[str]:
        """The assistant's answer to ``messages``, piece by piece as the server sends it."""
        for choice in self._stream("chat/completions", {"model": model, "messages": messages}):
            delta = choice.get("delta")
            content = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(content, str) and content:
                yield content

    def complete(self, model: str, prompt: str, max_tokens: int | None = None) -> Generator[str]:
        """What the model writes after ``prompt``, piece by piece; ``max_tokens`` None leaves it to the server."""
        body: dict[str, Any] = {"model": model, "prompt": prompt}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        for choice in self._stream("completions", body):
            text = choice.get("text")
            if isinstance(text, str) and text:
                yield text

    def _stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The first choice of every chunk of a streamed answer. Closing the iterator closes the connection."""
        decoder = SSEDecoder()
        answering = False
        try:
            # Encoded here, in plain ASCII, because a command line may hold bytes that are no text (lone surrogates).
            content = json.dumps({**body, "stream": True}).encode()
            with self._http.stream("POST", f"{self.url}/{path}", content=content, headers=_JSON) as response:
                if response.is_error:
                    response.read()
                    raise self._refused(response)
                answering = True
                for piece in response.iter_bytes():
                    for event in decoder.feed(piece):
                        if event.data == "[DONE]":
                            return
                        choice = self._first_choice(event.data)
                        if choice is not None:
                            yield choice
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if answering:
                raise CommandError(f"the connection to {self.url} broke in the middle of the answer") from error
            raise self._unreachable(error) from error
        raise CommandError(f"{self.url} ended its answer early")

    def _first_choice(self, data: str) -> dict[str, Any] | None:
        """The first choice of one chunk; None for a chunk without any, such as the one with the usage."""
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise CommandError(f"the server ended the answer with an error: {_message(chunk)}")
            choices = chunk["choices"]
            choice = choices[0] if choices else None
        except (ValueError, LookupError, TypeError) as error:
            raise self._nonsense(data) from error
        if choice is not None and not isinstance(choice, dict):
            raise self._nonsense(data)
        return choice

    def _nonsense(self, data: str) -> CommandError:
        return CommandError(f"{self.url} sent something that is no completion: {data[:80]!r}")

    def _unreachable(self, error: Exception) -> CommandError:
        reason = str(error) or type(error).__name__
        return CommandError(
            f"no answer from {self.url} ({reason}). Start a server with `vllm serve MODEL`, "
            f"or name a running one with {self._option}"
        )

    def _refused(self, response: httpx.Response) -> CommandError:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        try:
            said = _message(response.json())
        except ValueError:
            said = " ".join(response.text.split())[:200]
        line = f"{self.url} answered {status}" + (f": {said}" if said else "")
        if response.status_code == 404 and not self.url.endswith("/v1"):
            line += " (does the URL lack its /v1?)"
        return CommandError(line)


def api_key_from_environment() -> str | None:
    """The API key that the environment holds, if any."""
    return next((os.environ[name] for name in API_KEY_VARIABLES if os.environ.get(name)), None)


def _message(body: Any) -> str:
    """The text of an error body: OpenAI's ``{"error": {"message": ...}}``, or what others make of it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", error))
    return error if isinstance(error, str) else json.dumps(error)
