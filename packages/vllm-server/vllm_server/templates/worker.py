"""Renders chat templates of clients: ``python -m vllm_server.templates.worker``, started by ``TemplateProcess``.

Such a template is a program of somebody nobody knows. What it may do is bounded by ``template_engine``; what slips
through there meets limits of the system here, which end this process and nothing else: of memory, and of time for each
rendering. It ends with its parent, too: when standard input is closed.
"""

import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import IO, Any

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported, VllmError
from vllm_engine.frontend.chat_template import render_chat
from vllm_engine.frontend.template_engine import SlowTemplate

LENGTH = struct.Struct("<I")
"""Length in bytes of a message, ahead of it."""
MEMORY_BYTES = 1 << 30
"""Address space of the process."""
KILL_SECONDS = 3.0
"""After so long the system ends the process in the middle of a rendering."""


class RenderCall(msgspec.Struct):
    """The arguments of ``render_chat``, with the parts of the tokenizer that it looks at."""

    chat_templates: Mapping[str, str]
    special_tokens_map: Mapping[str, str]
    messages: list[dict[str, Any]]
    options: dict[str, Any]


class RenderResult(msgspec.Struct):
    """The text, or what is wrong and with which field."""

    text: str = ""
    error: str | None = None
    field: str | None = None
    unsupported: bool = False


def write_message(pipe: IO[bytes], message: msgspec.Struct) -> None:
    """Send a message. Raises ``OSError`` when nobody is at the other end."""
    data = msgspec.msgpack.encode(message)
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes:
    """The bytes of the next message. Raises ``EOFError`` when there is no more."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _render(call: RenderCall) -> RenderResult:
    try:
        return RenderResult(render_chat(call, call.messages, **call.options))
    except SlowTemplate as error:
        return RenderResult("", str(error), "chat_template")
    except InvalidRequest as error:
        return RenderResult("", str(error), error.field, isinstance(error, Unsupported))
    except VllmError as error:
        return RenderResult("", str(error), "chat_template")
    except RecursionError:
        return RenderResult("", "The conversation is nested too deeply.", "messages")


def main() -> int:
    """Render until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the whole group
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decode = msgspec.msgpack.Decoder(RenderCall).decode
    while True:
        try:
            call = decode(read_message(sys.stdin.buffer))
        except EOFError:
            return 0
        signal.setitimer(signal.ITIMER_REAL, KILL_SECONDS)  # nobody handles SIGALRM: it ends the process
        result = _render(call)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(sys.stdout.buffer, result)


if __name__ == "__main__":
    sys.exit(main())
