"""A stream that runs again and again beside a test, and must come out the same to the last bit each time."""

import json
import threading
from typing import Any

import httpx

BODY = {
    "prompt": "The control stream goes on, whatever others send:",
    "max_tokens": 48,
    "ignore_eos": True,
    "temperature": 0.9,
    "seed": 7,
    "logprobs": 2,
    "stream": True,
}

PAUSE = 0.3
"""Seconds between two of them: the test needs the processor, too."""


def stream_once(url: str) -> list[dict[str, Any]]:
    """The choices of each event."""
    choices = []
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                choices.append(json.loads(line.removeprefix("data: "))["choices"])
    return choices


def as_one(choices: list[Any]) -> str:
    """Text and logprobs of a stream, however many tokens its events hold: under load, several."""
    pieces = [choice for event in choices for choice in event]
    return json.dumps(
        [
            "".join(piece["text"] for piece in pieces),
            [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"]["token_logprobs"]],
            [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"]["top_logprobs"]],
            pieces[-1]["finish_reason"],
        ]
    )


class ControlStream:
    """``with ControlStream(url) as control``: repeats the stream in a thread; ``control.check()`` after it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.alone = as_one(stream_once(url))
        self.others: list[str] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "ControlStream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def check(self) -> None:
        """It ran, and each time as it did alone."""
        assert self.errors == []
        assert len(self.others) >= 2
        assert set(self.others) == {self.alone}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.others.append(as_one(stream_once(self.url)))
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self.errors.append(repr(error))
            self._stop.wait(PAUSE)
