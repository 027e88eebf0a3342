"""``disable_log_stats``: whether the engine writes its statistics into the log."""

import functools
import logging
from pathlib import Path

import pytest

from tests.engine.frontend.scripted_core import AsyncDouble, ScriptedCore, echo, model_folder
from vllm_engine import AsyncLLM, EngineArgs
from vllm_engine.metrics.logging_stats import LoggingStatLogger


@pytest.mark.parametrize("disabled", [False, True])
async def test_statistics_are_logged_unless_disabled(
    disabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm_engine.async_llm.LoggingStatLogger", functools.partial(LoggingStatLogger, interval=1e-9))
    monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: AsyncDouble(ScriptedCore(echo)))
    args = EngineArgs(str(model_folder(tmp_path / "tiny")), disable_log_stats=disabled)
    with caplog.at_level(logging.INFO, logger="vllm_engine"):
        async with AsyncLLM(args) as llm:
            async for _ in llm.generate("the cat sat on the mat"):
                pass
    lines = [record.getMessage() for record in caplog.records if "tokens/s" in record.getMessage()]
    assert bool(lines) != disabled
