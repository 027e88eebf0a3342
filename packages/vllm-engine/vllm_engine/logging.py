"""Logging of the five wheels: a logger tree for each, configured only by programs, never by ``import``."""

import json
import logging
import logging.config
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal
from unicodedata import category

from vllm_engine import envs
from vllm_engine.errors import ConfigError

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
_TREES = ("vllm_kernels", "vllm_engine", "vllm_server", "vllm_cli", "vllm_bench")
_ALL_TREES = "vllm"
"""Name under which a configuration may set up all trees at once."""
_FLAG, _VARIABLE = "log_config_file", "VLLM_LOGGING_CONFIG_PATH"

_ODD_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
"""Characters that end a line, move a cursor, hide or turn text around, or cannot be written at all."""

_in_force: str | None = None


def printable(text: str) -> str:
    """``text`` with every character escaped that a terminal or a reader of lines might act upon."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if category(char) in _ODD_CATEGORIES else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if ord(char) > 127 else f"\\x{ord(char):02x}"


class LineFormatter(logging.Formatter):
    """Lines that nobody can forge: what a record holds cannot begin a line of the log, nor hide what stands in it.

    The first line of a record begins at the margin, all others are indented; other control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, with its traceback."""
        return "\n    ".join(map(printable, super().format(record).split("\n")))


class JsonFormatter(logging.Formatter):
    """One JSON object in one line for each record: ``time``, ``level``, ``logger``, ``process``, ``message``, the
    ``fields`` that came with it (``extra={"fields": {...}}``), and ``error``, a traceback.
    """

    def __init__(self, prefix: str = "") -> None:
        """``prefix``: stands as ``prefix`` in each object, if there is one."""
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """The object, in ASCII."""
        told: dict[str, Any] = {"prefix": self._prefix} if self._prefix else {}
        told |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def get_logger(name: str) -> logging.Logger:
    """Logger for a module: ``get_logger(__name__)``."""
    return logging.getLogger(name)


def configure_logging(
    *, config_file: str | None = None, config: str | None = None, style: Literal["text", "json"] = "text"
) -> None:
    """Set up the log of a program: by a configuration if there is one, else on stderr at ``VLLM_LOGGING_LEVEL``.

    Called by programs (the server, the command line, the engine process). A library user who configures
    ``logging`` keeps their own set-up, and so does whoever sets ``VLLM_CONFIGURE_LOGGING=0``.

    Args:
        config_file: JSON file that holds what ``logging.config.dictConfig`` takes; None takes the one that
            ``VLLM_LOGGING_CONFIG_PATH`` names. It is the operator's own and may name any class. Its entry for the
            logger ``vllm`` stands for those of all wheels that it does not name.
        config: such JSON itself, as ``logging_in_force`` gives it; wins over a file.
        style: how a line on stderr looks where there is no configuration.

    Raises:
        ConfigError: for a file that cannot be read or used, naming the flag or the variable.
    """
    global _in_force
    field = _VARIABLE if config_file is None and config is None else _FLAG
    path = envs.get(_VARIABLE) if config_file is None else config_file
    given = json.loads(config) if config is not None else None if path is None else _read(path, field)
    if style == "json":
        if given is not None:
            raise ConfigError(f"log_format and {field} exclude each other: the file has its own", field="log_format")
        given, field = _json_to_stderr(), "log_format"
    if not envs.get("VLLM_CONFIGURE_LOGGING"):
        if given is not None:
            raise ConfigError(f"{field} and VLLM_CONFIGURE_LOGGING=0 exclude each other", field=field)
        return
    if given is None:
        _log_to_stderr()
    else:
        _use(given, field, path)
    _in_force = None if given is None else json.dumps(given)


def logging_in_force() -> str | None:
    """The configuration by which this program logs, as JSON; None when it logs on stderr, or was not told how."""
    return _in_force


def _read(path: str, field: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {error.strerror or error}", field=field) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{field}: {path} is not valid JSON: {error}", field=field) from error
    if not isinstance(given, dict):
        raise ConfigError(
            f"{field}: {path} must hold a JSON object, as logging.config.dictConfig takes it", field=field
        )
    return given


def _use(given: Mapping[str, Any], field: str, path: str | None) -> None:
    loggers = given.get("loggers")
    # Loggers are made by imports, long before this: unless it is said, none of them is to fall silent.
    whole = {"disable_existing_loggers": False, **given}
    if isinstance(loggers, Mapping) and _ALL_TREES in loggers:
        whole["loggers"] = {**dict.fromkeys(_TREES, loggers[_ALL_TREES]), **loggers}
    for tree in _TREES:
        logger = logging.getLogger(tree)
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    try:
        logging.config.dictConfig(whole)
    except Exception as error:  # classes that the configuration names may raise anything
        _log_to_stderr()
        reason = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
        raise ConfigError(f"{field}: {path or 'it'} cannot configure logging: {reason}", field=field) from error


def _json_to_stderr() -> dict[str, Any]:
    """The configuration of a log of JSON objects on stderr, for our loggers and uvicorn's."""
    logger = {"handlers": ["stderr"], "level": envs.get("VLLM_LOGGING_LEVEL"), "propagate": False}
    formatter = {"()": f"{__name__}.{JsonFormatter.__name__}", "prefix": envs.get("VLLM_LOGGING_PREFIX")}
    return {
        "version": 1,
        "formatters": {"json": formatter},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {_ALL_TREES: logger, "uvicorn": logger},
    }


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    prefix = envs.get("VLLM_LOGGING_PREFIX").replace("%", "%%")
    handler.setFormatter(LineFormatter(prefix + _FORMAT, datefmt="%m-%d %H:%M:%S"))
    for tree in _TREES:
        logger = logging.getLogger(tree)
        logger.handlers[:] = [handler]
        logger.setLevel(envs.get("VLLM_LOGGING_LEVEL"))
        logger.propagate = False


@contextmanager
def startup_phase(logger: logging.Logger, name: str, phases: dict[str, float]) -> Iterator[None]:
    """Time one named phase of start-up: one log line with its seconds, kept in ``phases[name]``."""
    start = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - start
    logger.info("start-up: %s took %.3f s", name, phases[name])
