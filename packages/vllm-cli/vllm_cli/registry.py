"""Which commands there are: those of this wheel, and those that other wheels bring by entry point."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from vllm_cli.command import Command, CommandError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "vllm_cli.commands"

BUILT_IN = {
    "serve": "vllm_cli.commands.serve",
    "chat": "vllm_cli.commands.chat",
    "complete": "vllm_cli.commands.complete",
    "run-batch": "vllm_cli.commands.run_batch",
    "collect-env": "vllm_cli.commands.collect_env",
    "completion": "vllm_cli.commands.completion",
}
"""Name of a command -> the module that holds its ``COMMAND``."""

EXTRAS = {"bench": "bench"}
"""Commands that live in a wheel of their own -> the extra of ``vllm-cli`` that installs it."""


def load(name: str) -> Command:
    """The command of that name; only its own module is imported.

    Raises:
        CommandError: (exit code 2) when there is none, with what to install or the nearest name.
    """
    if name in BUILT_IN:
        command: Command = import_module(BUILT_IN[name]).COMMAND
        return command
    plugins = _entry_points()
    if name in plugins:
        return _load_entry_point(plugins[name])
    if name in EXTRAS:
        raise missing(name, EXTRAS[name])
    near = difflib.get_close_matches(name, [*BUILT_IN, *EXTRAS, *plugins], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`vllm --help` lists them"
    raise CommandError(f"there is no command {name!r}; {hint}", exit_code=2)


def summaries() -> dict[str, str]:
    """Every command that can be named, with its line for ``vllm --help``."""
    lines = {name: load(name).summary for name in BUILT_IN}
    for name, entry_point in sorted(_entry_points().items()):
        if name not in BUILT_IN:
            try:
                lines[name] = _load_entry_point(entry_point).summary
            except CommandError as error:
                lines[name] = f"({error})"
    for name, extra in EXTRAS.items():
        lines.setdefault(name, f'(not installed; comes with "vllm-cli[{extra}]")')
    return lines


def missing(name: str, extra: str) -> CommandError:
    """The error of a command whose wheel is not installed."""
    return CommandError(
        f'`vllm {name}` needs more than vllm-cli: pip install "vllm-cli[{extra}]" (or `make install` in a checkout)',
        exit_code=2,
    )


def _entry_points() -> "dict[str, EntryPoint]":
    # Imported here because the built-in commands, and their --help, do without it (25 ms).
    from importlib.metadata import entry_points

    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


def _load_entry_point(entry_point: "EntryPoint") -> Command:
    # Another wheel's code: whatever it raises must not take `vllm --help` down.
    try:
        command = entry_point.load()
    except Exception as error:
        raise CommandError(f"{entry_point.value} cannot be loaded: {error}") from error
    if not isinstance(command, Command):
        raise CommandError(f"{entry_point.value} is not a vllm_cli.command.Command")
    return command
