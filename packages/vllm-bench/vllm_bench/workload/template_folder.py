"""The chat template beside a model's tokenizer, rendered with ``jinja2`` (extra ``vllm-bench[tokenizer]``)."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from vllm_cli.command import CommandError

_CONFIG = "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class TemplateFolder:
    """Puts conversations into the chat template of a folder: ``chat_template.jinja``, or that of
    ``tokenizer_config.json``, the one named ``default`` where there are several.

    The template is a stranger's code: it runs in jinja's sandbox.

    Raises:
        LookupError: the folder has none.
        CommandError: (exit code 2) it is broken, or ``jinja2`` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        config = _read_config(folder / _CONFIG)
        file = folder / "chat_template.jinja"
        source = _read(file) if file.is_file() else config.get("chat_template")
        if isinstance(source, list):
            source = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}.get("default")
        if not isinstance(source, str):
            raise LookupError(f"{folder} has no chat template")
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise CommandError('a chat template needs: pip install "vllm-bench[tokenizer]"', exit_code=2) from error
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._folder = folder
        self._special = {name: _token(config.get(name)) for name in _SPECIAL if _token(config.get(name)) is not None}
        self._wrong = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
        try:
            self._template = environment.from_string(source)
        except self._wrong as error:
            raise self._broken(error) from error

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text of a conversation up to where the answer begins; it holds its own special tokens.

        Raises:
            CommandError: (exit code 2) the template refuses it, or is broken.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._special)
        except self._wrong as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> CommandError:
        return CommandError(f"the chat template of {self._folder}: {type(error).__name__}: {error}", exit_code=2)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}", exit_code=2) from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _token(value: Any) -> str | None:
    """A special token of ``tokenizer_config.json``: its text, or an object that holds it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _to_json(value: Any, indent: int | None = None) -> str:
    """What templates expect of ``tojson``: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
