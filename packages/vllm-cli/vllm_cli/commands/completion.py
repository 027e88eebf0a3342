"""``vllm completion``: print the script by which a shell completes ``vllm``'s commands, options and values."""

from argparse import ArgumentParser, Namespace
from importlib import import_module

from vllm_cli.command import Command

_SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=_SHELLS, help="the shell to write for")


def run(options: Namespace) -> int:
    """Print the script; returns 0."""
    from vllm_cli.completion.surface import commands

    writer = import_module(f"vllm_cli.completion.{options.shell}")
    print(writer.script(commands()), end="")
    return 0


COMMAND = Command("Print a script that lets bash, zsh or fish complete vllm", add_arguments, run)
