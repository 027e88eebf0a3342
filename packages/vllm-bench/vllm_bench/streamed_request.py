"""One streamed request, timed: when it was sent, when each piece of text came, when it ended."""

import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from vllm_cli.sse import SSEDecoder

ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
"""Name of a backend -> path of its endpoint."""


@dataclass(slots=True)
class RequestTiming:
    """What one request measured. Times are seconds of ``time.perf_counter``, read in the client's process."""

    sent: float
    """Just before the request was handed to the HTTP client."""
    text_times: list[float] = field(default_factory=list)
    """Arrival of each chunk that carried text."""
    ended: float = 0.0
    """The end of the stream, or the moment of failure."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Token counts by the server's ``usage``; None when it reports none."""
    error: str | None = None
    """Why the request failed; None when it is complete."""

    @property
    def first_token_seconds(self) -> float:
        """Time to the first chunk with text (TTFT)."""
        return self.text_times[0] - self.sent

    @property
    def inter_token_seconds(self) -> list[float]:
        """Gaps between chunks with text (ITL). One chunk is one token unless the server joins several."""
        return [later - earlier for earlier, later in itertools.pairwise(self.text_times)]

    @property
    def total_seconds(self) -> float:
        """From sending to the end of the stream."""
        return self.ended - self.sent

    @property
    def output_tokens(self) -> int:
        """Tokens by the server's usage, else the number of chunks."""
        return len(self.text_times) if self.completion_tokens is None else self.completion_tokens

    @property
    def seconds_per_output_token(self) -> float | None:
        """Mean time of a token after the first (TPOT); None for an answer of less than two tokens."""
        if self.output_tokens < 2 or len(self.text_times) < 2:
            return None
        return (self.text_times[-1] - self.text_times[0]) / (self.output_tokens - 1)


def request_body(backend: str, model: str, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The JSON body that asks ``backend`` for a streamed answer with usage."""
    question = {"messages": [{"role": "user", "content": prompt}]} if backend == "openai-chat" else {"prompt": prompt}
    return {"model": model, **question, "stream": True, "stream_options": {"include_usage": True}, **options}


async def send(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> RequestTiming:
    """Send one request and read its answer to the end. A failure is recorded in the timing, not raised."""
    decoder = SSEDecoder()
    timing = RequestTiming(sent=time.perf_counter())
    finished = False
    try:
        async with client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                said = _message((await response.aread()).decode(errors="replace"))
                timing.error = f"status {response.status_code}: {said}"
            else:
                async for piece in response.aiter_bytes():
                    now = time.perf_counter()
                    for event in decoder.feed(piece):
                        if event.data == "[DONE]":
                            finished = True
                        else:
                            _read_chunk(json.loads(event.data), now, timing)
    except httpx.HTTPError as error:
        timing.error = f"{type(error).__name__}: {error}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        timing.error = f"not a completion chunk: {type(error).__name__}: {error}"
    timing.ended = time.perf_counter()
    if timing.error is None and not finished:
        timing.error = "the stream ended without [DONE]"
    if timing.error is None and not timing.text_times:
        timing.error = "the answer has no text; with --ignore-eos a model cannot end at once"
    return timing


def _message(body: str) -> str:
    """What the body of an error says: OpenAI's ``{"error": {"message": ...}}``, else its first 200 characters."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        body = str(json.loads(body)["error"]["message"])
    return " ".join(body.split())[:200]


def _read_chunk(chunk: dict[str, Any], now: float, timing: RequestTiming) -> None:
    if "error" in chunk:
        timing.error = f"error in the stream: {json.dumps(chunk['error'])[:200]}"
        return
    for choice in chunk["choices"]:
        delta = choice.get("delta") or {}
        # A reasoning model's first words are words too.
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            timing.text_times.append(now)
    usage = chunk.get("usage")
    if usage:
        timing.prompt_tokens = usage.get("prompt_tokens")
        timing.completion_tokens = usage.get("completion_tokens")
