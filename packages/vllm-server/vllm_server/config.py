"""The settings of the HTTP server; the ``vllm serve`` flags are made from these fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vllm_engine.config import EngineConfig
from vllm_engine.config.option import option
from vllm_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How the server listens, answers and stops."""

    host: str = option("127.0.0.1", help="address to listen on; 0.0.0.0 takes calls from other machines")
    port: Annotated[int, Meta(ge=0, le=65535)] = option(8000, help="TCP port to listen on; 0 picks a free one")
    root_path: Annotated[str, Meta(pattern=r"^(/[^/\s]+)*$")] = option(
        "", help="path prefix under which a proxy publishes the server, such as /llm"
    )
    chat_template: str | None = option(None, help="chat template that wins over the model's: a file, or the Jinja text")
    response_role: str = option("assistant", help="role named in the answers of the chat API")
    disable_fastapi_docs: bool = option(False, help="serve no /docs, /redoc and /openapi.json")
    disable_frontend_multiprocessing: bool = option(
        False, help="run the engine core in a thread of the server's process (for debugging)"
    )
    shutdown_timeout: Annotated[float, Meta(ge=0, le=86400)] = option(
        0.0, help="seconds that running requests get to finish when the server is told to stop; then they are aborted"
    )
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = option(
        "info", help="lowest level that uvicorn logs"
    )
    disable_uvicorn_access_log: bool = option(False, help="no log line for each HTTP request")


def create_server_config(options: dict[str, Any]) -> ServerConfig:
    """A checked ``ServerConfig``. Raises ``ConfigError`` naming the setting that has a wrong type or range."""
    try:
        return msgspec.convert(options, ServerConfig)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`") or None
        if field in options:
            message = f"{field} must be {_allowed(message)}, got {options[field]!r}"
        raise ConfigError(message, field=field) from error


def _allowed(message: str) -> str:
    """What a setting takes, in words, from msgspec's complaint: an integer of at most 65535."""
    if "matching regex" in message:
        return "a path such as /llm, without a slash at its end"
    words = {"`int`": "an integer", "`float`": "a number", "`str`": "a text", "`bool`": "true or false"}
    words |= {"`null`": "null", " | ": " or ", ">=": "of at least", "<=": "of at most", "Expected ": ""}
    for theirs, ours in words.items():
        message = message.replace(theirs, ours)
    return message.partition(", got ")[0]


def served_names(config: EngineConfig) -> list[str]:
    """Names under which the model answers; the first one is its main name."""
    return config.model.served_model_name or [config.model.model]


def load_chat_template(setting: str | None) -> str | None:
    """The text of the ``chat_template`` setting: the file's if there is such a file, else the setting if it is Jinja.

    Raises ``ConfigError`` when it is neither.
    """
    if setting is None:
        return None
    is_jinja = "{{" in setting or "{%" in setting
    path = Path(setting)
    try:
        if "\n" not in setting and path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if not is_jinja:
            raise ConfigError(f"chat_template: cannot read {setting}: {error}", field="chat_template") from error
    if is_jinja:
        return setting
    raise ConfigError(f"chat_template: no such file, and not a Jinja template: {setting[:200]}", field="chat_template")
