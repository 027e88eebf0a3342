"""What a command of ``vllm`` is made of, and the one error that it may end with."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One command: ``vllm <name> ...``.

    Another wheel adds one by an entry point of the group ``vllm_cli.commands`` that points to a ``Command``;
    the entry point's name is the command's name. The module that holds it should import little, for
    ``vllm --help`` loads it.
    """

    summary: str
    """One line for ``vllm --help``."""
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    """Does the work; returns the exit code. May raise ``CommandError``."""


class CommandError(Exception):
    """Ends the command with one line on stderr and no traceback.

    ``exit_code`` is 2 for what the user wrote (options, settings), 1 for what then went wrong.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
