"""Jinja for chat templates: sandboxed, bounded, and no error of it gets out raw. Templates come from strangers."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from vllm_engine.errors import ConfigError, InvalidRequest

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 26
MAX_REPEATED_CHARS = 1 << 20
"""Longest text that a template may make by multiplication."""


class TemplateRefusal(jinja2.TemplateError):
    """``raise_exception`` was called: the template itself says what is wrong with the messages."""


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the model's own words for training; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with a bound on what multiplication can blow up."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Numbers multiply freely; texts and lists only up to a size, and powers up to about a thousand bits."""
        if operator == "**" and not (abs(left) <= 1 << 16 and abs(right) <= 64):
            raise SecurityError("a power is too large")
        for sequence, count in ((left, right), (right, left)):
            if hasattr(sequence, "__len__") and isinstance(count, int) and len(sequence) * count > MAX_REPEATED_CHARS:
                raise SecurityError("a repeated text or list is too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models read it; jinja's own filter would write ``<`` as ``\\u003c``."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ChatEnvironment:
    environment = ChatEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render_template(template: str, variables: Mapping[str, Any], *, from_request: bool) -> str:
    """Render a chat template.

    Args:
        template: its text.
        variables: plain JSON values by name.
        from_request: whether the template came with the request, so that its faults are the client's.

    Raises:
        InvalidRequest: when the template refuses the messages or cannot be rendered with them.
        ConfigError: when the model's own template does not compile.
    """
    fault = InvalidRequest if from_request else ConfigError
    if len(template) > MAX_TEMPLATE_CHARS:
        raise fault(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters", field="chat_template")
    try:
        compiled = _compile(template)
    except Exception as error:
        raise fault(f"the chat template is broken: {error}", field="chat_template") from error
    try:
        return _bounded_text(compiled, variables)
    except TemplateRefusal as error:
        raise InvalidRequest(str(error), field="messages") from error
    except Exception as error:
        raise InvalidRequest(
            f"the chat template cannot be rendered with these messages: {_reason(error)}",
            field="chat_template" if from_request else "messages",
        ) from error


def _bounded_text(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    room = MAX_RENDERED_CHARS
    for piece in template.generate(**variables):
        room -= len(piece)
        if room < 0:
            raise jinja2.TemplateRuntimeError(f"the text is longer than {MAX_RENDERED_CHARS} characters")
        pieces.append(piece)
    return "".join(pieces)


def _reason(error: Exception) -> str:
    """Jinja's messages are about the template; those of Python's own errors may show addresses of objects."""
    return str(error)[:300] if isinstance(error, jinja2.TemplateError) else type(error).__name__
