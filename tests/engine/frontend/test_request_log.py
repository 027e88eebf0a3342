"""Requests in the log: what is told at which level, how much of it, and that no request forges a line."""

import logging

import pytest

from vllm_engine import LLM, SamplingParams
from vllm_engine.frontend.input_processor import PreparedRequest
from vllm_engine.frontend.request_log import MAX_PARAMS_CHARS, RequestLog


def prepared(
    prompt: str | None = "Hello, world", label: str = "cmpl-1", params: SamplingParams | None = None
) -> PreparedRequest:
    params = params or SamplingParams(temperature=0.25)
    return PreparedRequest(label, prompt, [11, 22, 33, 44, 55], params, [], arrival_time=0.0, queued_ts=0.0)


def lines(
    caplog: pytest.LogCaptureFixture, level: int, request: PreparedRequest, max_len: int | None = None
) -> list[str]:
    with caplog.at_level(level, logger="vllm_engine"):
        RequestLog(max_len).write(request)
    return [record.getMessage() for record in caplog.records]


def test_label_length_and_parameters_are_told_but_not_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines(caplog, logging.INFO, prepared())
    assert line.startswith("request cmpl-1: 5 prompt tokens, SamplingParams(")
    assert "temperature=0.25" in line
    assert "Hello" not in line
    assert "22" not in line


def test_the_prompt_is_told_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    first, second = lines(caplog, logging.DEBUG, prepared())
    assert first.startswith("request cmpl-1: 5 prompt tokens")
    assert second == "request cmpl-1: prompt 'Hello, world', token ids [11, 22, 33, 44, 55]"
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.DEBUG]


def test_nothing_is_told_at_a_higher_level(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, logging.WARNING, prepared()) == []


@pytest.mark.parametrize(
    ("max_len", "shown"),
    [
        (0, "prompt ''... (0 of 12), token ids []... (0 of 5)"),
        (3, "prompt 'Hel'... (3 of 12), token ids [11, 22, 33]... (3 of 5)"),
        (5, "prompt 'Hello'... (5 of 12), token ids [11, 22, 33, 44, 55]"),
        (12, "prompt 'Hello, world', token ids [11, 22, 33, 44, 55]"),
    ],
)
def test_so_much_of_a_prompt_and_no_more(max_len: int, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, logging.DEBUG, prepared(), max_len)[1] == f"request cmpl-1: {shown}"


def test_a_prompt_of_token_ids_has_no_text(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, logging.DEBUG, prepared(None), 1)[1].endswith("prompt None, token ids [11]... (1 of 5)")


@pytest.mark.parametrize("text", ["a\nINFO forged", "a\r\x1b[2Jb", "a\u2028b", "a\u202eb", "a\x00b", "\ud800"])
def test_no_request_forges_a_line_or_moves_the_cursor(text: str, caplog: pytest.LogCaptureFixture) -> None:
    request = prepared(text, label=text, params=SamplingParams(stop=[text.encode(errors="ignore").decode() or "x"]))
    for line in lines(caplog, logging.DEBUG, request):
        assert line.isprintable()


def test_endless_parameters_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines(caplog, logging.INFO, prepared(params=SamplingParams(allowed_token_ids=list(range(20_000)))))
    assert MAX_PARAMS_CHARS < len(line) < MAX_PARAMS_CHARS + 100
    assert line.endswith("...")


def test_requests_without_an_event_loop_are_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    for asked in (False, True):
        llm = LLM("demo", enable_log_requests=asked, max_model_len=64, num_gpu_blocks_override=8)
        with llm, caplog.at_level(logging.INFO, logger="vllm_engine"):
            llm.generate("Hello", SamplingParams(max_tokens=1, temperature=0.125), use_tqdm=False)
        assert ("temperature=0.125" in caplog.text) == asked
