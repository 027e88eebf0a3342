"""The ``vllm`` command. Parsed in two steps, so that only the chosen command's module is ever imported."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from vllm_cli import __version__, registry
from vllm_cli.command import CommandError
from vllm_cli.option_parser import OptionParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``vllm`` with ``arguments`` (default: those of the process); returns the exit code.

    0: done; 1: it failed; 2: the user's options or settings cannot be honoured; 130: Ctrl-C.
    """
    _fill_standard_descriptors()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Bytes that are no text, typed or sent by a model, show as a mark instead of ending the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except CommandError as error:
        print(f"vllm: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away (`vllm chat ... | head`): nothing is left to say, not even for the interpreter's flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"vllm: error: what was to be written was not: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's flush
        return 1


def _fill_standard_descriptors() -> None:
    """Open those of standard input, output and errors that are closed, so that no socket gets such a number.

    What is written for people would go there, and an event loop that closes such a socket ends the process.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(number, True)  # by the engine's process
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _run(arguments: Sequence[str]) -> int:
    parser = _Parser(prog="vllm", description="Run and question large language models.", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="version", version=__version__)
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help(sys.stderr)
        return 2

    command = registry.load(chosen.command)
    command_parser = OptionParser(prog=f"vllm {chosen.command}", description=f"{command.summary}.", allow_abbrev=False)
    command.add_arguments(command_parser)
    code = command.run(command_parser.parse_args(chosen.rest))
    sys.stdout.flush()
    return code


class _Parser(argparse.ArgumentParser):
    """The first step. Its help lists the commands, which are looked for only when help is asked for."""

    def format_help(self) -> str:
        lines = registry.summaries()
        width = max(len(name) for name in lines)
        commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in lines.items())
        return (
            f"usage: vllm [-h] [-v] COMMAND ...\n\n{self.description}\n\ncommands:\n{commands}\n\n"
            "options:\n"
            "  -h, --help     show this help and end; `vllm COMMAND --help` tells more\n"
            "  -v, --version  show the version and end\n"
        )

    def format_usage(self) -> str:
        return "usage: vllm [-h] [-v] COMMAND ...\n"
