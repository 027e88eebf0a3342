"""How far a batch is: a bar with rates on a terminal, lines in the log elsewhere."""

import io
import logging

import pytest

from vllm_server.batch.progress import BatchProgress
from vllm_server.batch.result import WrittenResult

GOOD = WrittenResult(b"", failed=False, prompt_tokens=30, completion_tokens=10)
BAD = WrittenResult(b"", failed=True)


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("vllm_server.batch.progress.time.monotonic", lambda: now)
    with caplog.at_level(logging.INFO), BatchProgress(total=100, done=20, failed=1) as progress:
        for result in (GOOD, GOOD, BAD, GOOD):
            now += 5.0
            progress.count(result)
    assert [record.getMessage() for record in caplog.records] == [
        "22 of 100 requests (22.0%), 0.2 requests/s, 6 prompt tokens/s, 2 new tokens/s, 1 failed, about 390 s left",
        "24 of 100 requests (24.0%), 0.2 requests/s, 4 prompt tokens/s, 2 new tokens/s, 2 failed, about 380 s left",
    ]


def test_on_a_terminal_a_bar_shows_the_rates(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with caplog.at_level(logging.INFO), BatchProgress(total=4, done=1, failed=0) as progress:
        for result in (GOOD, BAD, GOOD):
            progress.count(result)
    last = screen.getvalue().split("\r")[-1]
    assert "Requests: 100%" in last and "4/4" in last
    assert "prompt tokens/s" in last and "new tokens/s, 1 failed" in last
    assert caplog.records == []
