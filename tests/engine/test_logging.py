"""How programs log: on stderr as the environment says, or as a file of the operator says, the engine process too."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_engine import AsyncLLM, EngineArgs
from vllm_engine.errors import ConfigError
from vllm_engine.logging import configure_logging, get_logger, logging_in_force

TREES = ("vllm_kernels", "vllm_engine", "vllm_server", "vllm_cli", "vllm_bench")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no trace in the logging of the test run."""
    for name in list(os.environ):
        if name.startswith("VLLM_LOGGING") or name == "VLLM_CONFIGURE_LOGGING":
            monkeypatch.delenv(name)
    monkeypatch.setattr("vllm_engine.logging._in_force", None)
    loggers = [logging.getLogger(name) for name in ("", "other", *TREES, "vllm_engine.some.module")]
    before = [(list(logger.handlers), logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate, logger.disabled = handlers, level, propagate, disabled
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


Write = Callable[[Any], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(config)``: the path of a file with a configuration as JSON."""

    def write(config: Any) -> str:
        path = tmp_path / "logging.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return str(path)

    return write


def to_file(path: Path, **loggers: Any) -> dict[str, Any]:
    """A configuration that writes logger, process and text of each record into a file."""
    return {
        "version": 1,
        "formatters": {"plain": {"format": "%(name)s|%(process)d|%(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(path), "formatter": "plain"}},
        "loggers": loggers,
    }


def test_by_default_each_wheel_logs_on_stderr_at_the_level_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "warning")
    monkeypatch.setenv("VLLM_LOGGING_PREFIX", "[100% ours] ")
    configure_logging()
    for tree in TREES:
        get_logger(f"{tree}.some.module").info("quiet")
        get_logger(f"{tree}.some.module").warning("loud")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(TREES)
    for line, tree in zip(lines, TREES, strict=True):
        assert line.startswith("[100% ours] WARNING ")
        assert line.endswith(f"[{tree}.some.module] loud")
    assert logging_in_force() is None


def test_logging_can_be_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = logging.StreamHandler(sys.stderr)
    own.setFormatter(logging.Formatter("mine: %(message)s"))
    logging.getLogger("vllm_engine").handlers[:] = [own]
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    configure_logging()
    get_logger("vllm_engine.some.module").error("as you like")
    assert "mine: as you like\n" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_file_decides_alone(
    by: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()  # as programs do before they know of a flag
    logger = get_logger("vllm_engine.some.module")
    path = write(
        to_file(tmp_path / "log", vllm_engine={"handlers": ["file"], "level": "DEBUG"}, other={"handlers": ["file"]})
    )
    if by == "flag":
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/no/such/file")  # the flag wins
        configure_logging(config_file=path)
    else:
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", path)
        configure_logging()
    logger.debug("of the engine")
    get_logger("vllm_server").info("nobody asked for this one")
    logging.getLogger("other").warning("of another")
    assert (tmp_path / "log").read_text() == (
        f"vllm_engine.some.module|{os.getpid()}|of the engine\nother|{os.getpid()}|of another\n"
    )
    assert capsys.readouterr().err == ""
    assert json.loads(logging_in_force() or "") == json.loads(Path(path).read_text())


def test_the_name_of_the_product_stands_for_all_wheels(write: Write, tmp_path: Path) -> None:
    loggers = {
        "vllm": {"handlers": ["file"], "level": "INFO"},
        "vllm_cli": {"handlers": ["file"], "level": "ERROR"},
    }
    configure_logging(config_file=write(to_file(tmp_path / "log", **loggers)))
    for tree in TREES:
        get_logger(tree).info("told")
    told = [line.split("|")[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert told == [tree for tree in TREES if tree != "vllm_cli"]


def test_what_is_in_force_can_be_handed_on(write: Write, tmp_path: Path) -> None:
    configure_logging(config_file=write(to_file(tmp_path / "log", vllm={"handlers": ["file"], "level": "INFO"})))
    held = logging_in_force()
    configure_logging()
    assert logging_in_force() is None
    configure_logging(config=held)
    get_logger("vllm_engine").info("told")
    assert "told" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([1], "must hold a JSON object"),
        ({}, "version"),
        ({"version": 1, "handlers": {"h": {"class": "no.such.Class"}}}, "no"),
        (
            {"version": 1, "handlers": {"h": {"class": "logging.FileHandler", "filename": "/no/such/log"}}},
            "/no/such/log",
        ),
        ({"version": 1, "loggers": {"vllm": {"handlers": ["missing"]}}}, "missing"),
        ({"version": 1, "loggers": ["vllm"]}, "cannot configure logging"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    config: Any, reason: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(config)
    with pytest.raises(ConfigError, match=f"log_config_file: .*{reason}") as error:
        configure_logging(config_file=path)
    assert error.value.field == "log_config_file"
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", path)
    with pytest.raises(ConfigError, match=reason) as error:
        configure_logging()
    assert error.value.field == "VLLM_LOGGING_CONFIG_PATH"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigError, match=f"log_config_file: cannot read {path}"):
            configure_logging(config_file=str(path))


def test_a_file_contradicts_logging_left_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    with pytest.raises(ConfigError, match="VLLM_CONFIGURE_LOGGING"):
        configure_logging(config_file=write({"version": 1}))


async def test_the_engine_process_logs_as_its_parent_does(write: Write, tmp_path: Path) -> None:
    configure_logging(config_file=write(to_file(tmp_path / "log", vllm={"handlers": ["file"], "level": "INFO"})))
    async with AsyncLLM(EngineArgs("demo", max_model_len=64, num_gpu_blocks_override=8)):
        pass
    lines = [line.split("|") for line in (tmp_path / "log").read_text().splitlines()]
    processes = {int(process) for _, process, _ in lines}
    assert os.getpid() in processes
    assert len(processes) == 2


def test_an_import_configures_nothing() -> None:
    code = (
        "import logging, vllm_engine, vllm_server.serve, vllm_engine.logging;"
        f"print([logging.getLogger(tree).handlers for tree in {TREES!r}])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str([[] for _ in TREES])
