"""Questions from a terminal (or a pipe) in, streamed answers out: what ``vllm chat`` and ``vllm complete`` share."""

import contextlib
import re
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass

from vllm_cli.command import CommandError

# Everything that could move the cursor, colour or rename the terminal; newline and tab stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Shown:
    """What ``show`` wrote; ``stopped`` when the user cut it short with Ctrl-C."""

    text: str
    stopped: bool


def show(pieces: Generator[str]) -> Shown:
    """Write an answer as it arrives, ending in a newline; returns its text as the server sent it.

    A model's text is not trusted with the terminal: there, control characters are left out.
    """
    to_terminal = sys.stdout.isatty()
    text: list[str] = []
    stopped = False
    try:
        for piece in pieces:
            text.append(piece)
            sys.stdout.write(_CONTROL.sub("", piece) if to_terminal else piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        # Closing the stream tells the server to stop computing.
        pieces.close()
        stopped = True
        sys.stdout.write(" [stopped]" if to_terminal else "")
    except CommandError:
        # What has come stays on a line of its own, before the error.
        sys.stdout.write("\n" if text else "")
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return Shown("".join(text), stopped)


def run(answer: Callable[[str], Shown], *, banner: str, commands: dict[str, Callable[[], str]] | None = None) -> int:
    """Ask for lines until the input ends, and hand each to ``answer``; returns the exit code.

    Args:
        answer: shows the answer to one line. A ``CommandError`` is shown and the session goes on; when the input is
            no terminal, nobody could react, so it ends the program instead.
        banner: shown first, on a terminal only.
        commands: lines such as ``/clear``; each returns a line to show. ``/help`` and ``/exit`` come of themselves.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        # Line editing and history; the module is missing from some builds of Python.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        print(banner)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return 0
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        if not line:
            continue
        if commands is not None and re.fullmatch(r"/\w+", line):
            if line == "/exit":
                return 0
            print(commands[line]() if line in commands else f"/exit {' '.join(commands)}, or Ctrl-D to end")
            continue
        try:
            if answer(line).stopped and not interactive:
                raise KeyboardInterrupt
        except CommandError as error:
            if not interactive:
                raise
            print(f"error: {error}", file=sys.stderr)
