"""Jinja for chat templates: sandboxed, bounded, and no error of it gets out raw. Templates come from strangers."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.visitor

from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.frontend.template_budget import (
    FILTER_CHECKS,
    RENDER_SECONDS,
    CountedRounds,
    RenderTimeout,
    check_length,
    check_method,
    check_operands,
    spend,
    time_limit,
)

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 26


class SlowTemplate(InvalidRequest):
    """The chat template did not end within its time."""


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
    """The sandbox, in which every round of a loop and every call costs, and growing texts have a bound.

    The parsed template is rewritten: a loop walks through ``counted`` items, and ``~`` becomes ``joined``.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Bounded arithmetic."""
        if operator == "+" and type(left) is str and type(right) is str:  # what templates do most of the time
            check_length(len(left) + len(right))
            return left + right
        check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call of the template: of macros, methods, functions, and of ``loop`` in recursive ones."""
        spend()
        owner = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str):
            check_method(owner, called.__name__, args or tuple(kwargs.values()))
        elif isinstance(called, jinja2.runtime.LoopContext) and args:
            args = (CountedRounds(args[0]), *args[1:])
        return super().call(context, called, *args, **kwargs)

    def counted(self, items: Any) -> CountedRounds:
        """What a loop walks through."""
        return CountedRounds(items)

    def joined(self, *parts: Any) -> str:
        """The operands of ``~`` as one text."""
        texts = [str(part) for part in parts]
        check_length(sum(map(len, texts)))
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(jinja2.nodes.For):
            loop.iter = _call_of("counted", [loop.iter], loop.lineno)
        return _Joins().visit(template)  # type: ignore[no-any-return]


class _Joins(jinja2.visitor.NodeTransformer):
    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _call_of("joined", node.nodes, node.lineno)


def _call_of(method: str, args: Sequence[jinja2.nodes.Node], lineno: int) -> jinja2.nodes.Call:
    """A call of a method of the environment, as a part of a template."""
    return jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute(method), list(args), [], None, None, lineno=lineno)


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


def _checked(work: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A filter that asks ``check`` first."""
    own = 1 if hasattr(work, "jinja_pass_arg") else 0  # jinja hands some filters its own state first

    @wraps(work)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[own:], *kwargs.values())
        return work(*args, **kwargs)

    return checked


def _environment() -> ChatEnvironment:
    environment = ChatEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    for name, check in FILTER_CHECKS.items():
        environment.filters[name] = _checked(environment.filters[name], check)
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@lru_cache(maxsize=64)
def _names_read(template: str) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(template)))


def names_read(template: str, *, from_request: bool) -> frozenset[str]:
    """Names of the variables that a template looks at. Raises as ``render_template`` for one that is broken."""
    _compiled(template, from_request=from_request)
    return _names_read(template)


def _compiled(template: str, *, from_request: bool) -> jinja2.Template:
    fault = InvalidRequest if from_request else ConfigError
    if len(template) > MAX_TEMPLATE_CHARS:
        raise fault(f"the chat template has more than {MAX_TEMPLATE_CHARS} characters", field="chat_template")
    try:
        return _compile(template)
    except Exception as error:
        raise fault(f"the chat template is broken: {error}", field="chat_template") from error


def render_template(template: str, variables: Mapping[str, Any], *, from_request: bool) -> str:
    """Render a chat template.

    Args:
        template: its text.
        variables: plain JSON values by name.
        from_request: whether the template came with the request, so that its faults are the client's.

    Raises:
        InvalidRequest: when the template refuses the messages or cannot be rendered with them.
        SlowTemplate: when it has not ended after ``RENDER_SECONDS``, or after the time of a ``time_limit`` around this.
        ConfigError: when the model's own template does not compile.
    """
    compiled = _compiled(template, from_request=from_request)
    try:
        with time_limit(RENDER_SECONDS):
            return _bounded_text(compiled, variables)
    except TemplateRefusal as error:
        raise InvalidRequest(str(error), field="messages") from error
    except RenderTimeout as error:
        raise SlowTemplate("the chat template takes too long with these messages", field="messages") from error
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
