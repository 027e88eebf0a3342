"""How ``vllm`` reads the options of a command: a mistake is one line that names the option and what is near.

Beside what ``argparse`` reads: underscores for dashes (``--max_num_seqs``), values close to a short option (``-O3``,
``-tp2``), the keys of a JSON option one by one (``--name.key value``, ``--name.list+ a,b``), and ``--help=<word>``.
"""

import argparse
import difflib
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from vllm_cli import help_pages

_NUMBER = re.compile(r"-[0-9.]+[kmgtKMGT]?")
_ATTACHED = re.compile(r"(?P<option>-[A-Za-z]+?)(?P<value>[0-9]+)")


class OptionParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line on stderr, with exit code 2.

    An option whose action has a true attribute ``takes_keys`` is a JSON object. The namespace's ``only_keys`` is the
    set of those that were given by keys alone, so that the keys may be laid over an object from elsewhere.

    ``later`` adds the options when they are first needed: a sub-command that is not called need not import what
    declares its options, nor have it installed.
    """

    def __init__(
        self, *args: Any, later: Callable[[argparse.ArgumentParser], None] | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})
        self._later = later

    def complete(self) -> None:
        """Add the options that were left for later. Raises what their declaration raises, such as ``CommandError``."""
        later, self._later = self._later, None
        if later is not None:
            later(self)

    def error(self, message: str) -> NoReturn:
        """End the program with ``message``."""
        message = message.removeprefix("argument ").rstrip(".")
        # argparse names every spelling of an option at fault: `-q/--quick: ...`.
        spellings, colon, rest = message.partition(": ")
        if colon and spellings.startswith("-"):
            message = f"{max(spellings.split('/'), key=len)}: {rest}"
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")

    def format_help(self) -> str:
        """The short page where a command has many options, else the usual one."""
        return help_pages.short(self) if help_pages.is_long(self) else super().format_help()

    def format_full_help(self) -> str:
        """Every option."""
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in ``argparse``, but what is not known is an error here, in the parser whose options are the near ones."""
        self.complete()
        arguments = list(args or [])
        for argument in self._own(arguments):
            if argument.startswith("--help="):
                page = help_pages.find(self, argument.partition("=")[2])
                if page is None:
                    self.error(f"--help: nothing is named {argument.partition('=')[2]!r} or has that in its name")
                print(page)
                self.exit(0)
        own = self._own(arguments)
        canonical, only_keys = _Canonical(self).read(own)
        parsed, unknown = super().parse_known_args([*canonical, *arguments[len(own) :]], namespace)
        if unknown:
            self.error(self.unknown(unknown[0]))
        if only_keys:
            parsed.only_keys = only_keys
        return parsed, unknown

    def _own(self, arguments: list[str]) -> list[str]:
        """The arguments up to a sub-command, or whatever else is left for another parser to read."""
        if all(action.nargs not in (argparse.PARSER, argparse.REMAINDER) for action in self._actions):
            return arguments
        at = 0
        while at < len(arguments) and arguments[at].startswith("-"):
            action = self.options().get(arguments[at].replace("_", "-"))
            at += 2 if action is not None and action.nargs is None else 1
        return arguments[:at]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As in ``argparse``, but what is near is named, and a sub-command stands for itself."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        at_fault = None if action.nargs == argparse.PARSER else action
        raise argparse.ArgumentError(at_fault, f"{value!r} is none of {', '.join(choices)}{hint}")

    def unknown(self, argument: str) -> str:
        """What is wrong with an argument that nothing takes, and what is near."""
        if not argument.startswith("-"):
            return f"{argument!r} is one argument too many"
        option = argument.partition("=")[0]
        near = difflib.get_close_matches(option, self.options(), n=1, cutoff=0.75)
        return f"there is no option {option}" + (f"; did you mean {near[0]}?" if near else "")

    def options(self) -> dict[str, argparse.Action]:
        """Every spelling of every option."""
        return self._option_string_actions


class _Canonical:
    """Turns arguments into the spellings that ``argparse`` knows."""

    def __init__(self, parser: OptionParser) -> None:
        self._parser = parser
        self._known = parser.options()
        self._objects: dict[str, dict[str, Any]] = {}  # option -> the JSON object that its keys make
        self._only_keys: set[str] = set()

    def read(self, arguments: list[str]) -> tuple[list[str], set[str]]:
        result: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            if argument == "--":
                result += [argument, *rest]
            elif not argument.startswith("-") or argument == "-" or _NUMBER.fullmatch(argument):
                result.append(argument)
            else:
                result += self._option(argument, rest)
        objects = [f"{option}={json.dumps(value)}" for option, value in self._objects.items()]
        return [*objects, *result], self._only_keys

    def _option(self, argument: str, rest: Any) -> list[str]:
        name, equals, value = argument.partition("=")
        base, dot, keys = name.partition(".")
        option = base.replace("_", "-") if base.startswith("--") else base
        action = self._known.get(option)
        if action is None:
            attached = _ATTACHED.fullmatch(argument)
            if attached is None or attached["option"] not in self._known:
                self._parser.error(self._parser.unknown(option))
            return [attached["option"], attached["value"]]
        if not getattr(action, "takes_keys", False):
            if dot:
                self._parser.error(f"{option} has no keys")
            if equals and action.nargs == 0:
                self._parser.error(f"{option} is a switch and takes no value, got {value!r}")
            return [option + equals + value]
        if not equals:
            following = next(rest, None)
            if following is None or (following.startswith("-") and not _NUMBER.fullmatch(following)):
                self._parser.error(f"{name} needs a value")
            value = following
        if dot:
            self._put_key(action, keys.split("."), value, name)
        else:
            self._put(action, value)
        return []

    def _put(self, action: argparse.Action, text: str) -> None:
        """A whole object: it replaces what was said before."""
        option = max(action.option_strings, key=len)
        read: Callable[[str], dict[str, Any]] = action.type  # type: ignore[assignment]
        try:
            self._objects[option] = read(text)
        except argparse.ArgumentTypeError as error:
            self._parser.error(f"{option}: {error}")
        self._only_keys.discard(action.dest)

    def _put_key(self, action: argparse.Action, path: list[str], text: str, name: str) -> None:
        option = max(action.option_strings, key=len)
        if option not in self._objects:
            self._only_keys.add(action.dest)
        place = self._objects.setdefault(option, {})
        *path, last = path
        if not all((*path, last.removesuffix("+"))):
            self._parser.error(f"{name}: a key is missing")
        for key in path:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                self._parser.error(f"{name}: {key} is not an object")
        if not last.endswith("+"):
            place[last] = _value(text)
            return
        items = place.setdefault(last[:-1], [])
        if not isinstance(items, list):
            self._parser.error(f"{name}: {last[:-1]} is not a list")
        items += [_value(part) for part in text.split(",")]


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
