"""What the server logs, and where: ``--log-config-file`` and ``--uvicorn-log-level``."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import make_context, running
from tests.server.fake_llm import FakeLLM
from tests.server.process import Process


def log_config(path: Path, **loggers: Any) -> str:
    """The path of a configuration that writes logger and text of each record into the file ``log`` beside it."""
    config = {
        "version": 1,
        "formatters": {"plain": {"format": "%(name)s|%(levelname)s|%(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path / "log"), "formatter": "plain"}},
        "loggers": {name: {"handlers": ["file"], **settings} for name, settings in loggers.items()},
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path / "config.json")


@pytest.mark.parametrize("flags", [[], ["--uvicorn-log-level", "error"]])
def test_a_file_tells_where_server_and_uvicorn_log(tmp_path: Path, flags: list[str]) -> None:
    path = log_config(tmp_path, vllm={"level": "INFO"}, uvicorn={"level": "INFO"})
    process = Process("--log-config-file", path, "--shutdown-timeout", "1", *flags)
    try:
        assert httpx.get(process.url + "/health").status_code == 200
        process.signal(15)
        assert process.end() == 0
    finally:
        process.kill()
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("vllm_server.running.ending|INFO|stopping") for line in lines)
    access = [line for line in lines if line.startswith("uvicorn.access|INFO|") and "/health" in line]
    assert len(access) == (0 if flags else 1)
    assert process.log == []


@pytest.mark.parametrize("text", [None, "{", '{"version": 2}'])
def test_a_file_that_cannot_be_used_ends_the_start(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    process = Process("--log-config-file", str(path))
    try:
        assert process.end() == 2
    finally:
        process.kill()
    assert process.lines == []  # the engine was not launched
    (line,) = process.log
    assert line.startswith("vllm serve: error: --log-config-file: ")
    assert str(path) in line


def test_the_engine_is_told_how_much_of_a_prompt_to_log() -> None:
    process = Process("--enable-log-requests", "--max-log-len", "40")
    try:
        assert process.url
        process.signal(15)
        assert process.end() == 0
    finally:
        process.kill()
    assert process.lines[0] == "max_log_len=40"


@pytest.fixture
def uvicorn_levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.mark.usefixtures("uvicorn_levels")
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, True),
        ({"uvicorn_log_level": "debug"}, True),
        ({"uvicorn_log_level": "warning"}, False),
        ({"disable_uvicorn_access_log": True}, False),
    ],
)
def test_requests_are_logged_unless_that_is_too_little(
    options: dict[str, Any], shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with running(make_context(FakeLLM(), **options)) as url:
        assert httpx.get(url + "/health").status_code == 200
    assert (
        any("/health" in record.getMessage() for record in caplog.records if record.name == "uvicorn.access") == shown
    )


@pytest.mark.parametrize("flags", [[], ["--disable-log-stats"]])
def test_without_statistics_there_are_no_metrics_of_the_engine(flags: list[str]) -> None:
    process = Process(*flags)
    try:
        page = httpx.get(process.url + "/metrics").text
    finally:
        process.kill()
    assert ("vllm:num_requests_running" in page) == (not flags)
