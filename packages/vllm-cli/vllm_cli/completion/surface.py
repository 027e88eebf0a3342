"""What can be completed: every command with its options, read from the parsers that read the command line."""

import argparse
from dataclasses import dataclass

from vllm_cli import registry
from vllm_cli.command import CommandError
from vllm_cli.option_parser import OptionParser

_LONGEST_HELP = 100


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its spellings, its line of help, whether it takes a value, and the values if these are few."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommandSurface:
    """One command; ``words`` is how it is called after ``vllm``: ``("bench", "serve")``.

    ``arguments`` are the values of its argument that is no option, where these are few.
    """

    words: tuple[str, ...]
    summary: str
    options: tuple[Option, ...]
    subcommands: tuple["CommandSurface", ...] = ()
    arguments: tuple[str, ...] = ()

    def all_below(self) -> list["CommandSurface"]:
        """Its sub-commands, and theirs: ``vllm bench sweep serve`` is two below ``vllm bench``."""
        return [command for inner in self.subcommands for command in (inner, *inner.all_below())]


def commands() -> list[CommandSurface]:
    """Every installed command. One that cannot be loaded is left out, and so is such a sub-command."""
    found = []
    for name, summary in registry.summaries().items():
        parser = OptionParser(prog=f"vllm {name}")
        try:
            registry.load(name).add_arguments(parser)
        except CommandError:
            continue
        found.append(_surface((name,), summary, parser))
    return found


def _surface(words: tuple[str, ...], summary: str, parser: argparse.ArgumentParser) -> CommandSurface:
    options, subcommands, arguments = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                try:
                    inner.complete()
                except CommandError:
                    continue
                subcommands.append(_surface((*words, name), summaries.get(name, ""), inner))
        elif action.option_strings and action.help != argparse.SUPPRESS:
            options.append(_option(action))
        elif not action.option_strings:
            arguments += [str(choice) for choice in action.choices or ()]
    return CommandSurface(words, summary, tuple(options), tuple(subcommands), tuple(arguments))


def _option(action: argparse.Action) -> Option:
    values = getattr(action, "allowed", None) or [str(choice) for choice in action.choices or ()]
    text = (action.help or "").replace("%%", "%").partition(" (default: ")[0]
    if len(text) > _LONGEST_HELP:
        text = text[: _LONGEST_HELP - 3] + "..."
    return Option(tuple(action.option_strings), text, action.nargs != 0, tuple(values))
