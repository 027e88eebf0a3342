"""The forms of ``--help`` for a command with many options: short, one group, one option, a keyword, all.

They are made from an ``argparse`` parser alone: its groups, its actions and their help texts. An action's attribute
``common`` puts it on the short page.
"""

import argparse
import difflib
import typing

if typing.TYPE_CHECKING:
    from vllm_cli.option_parser import OptionParser

LONG = 40
"""From this many options on, ``--help`` shows the short page."""
_PLAIN_GROUPS = ("positional arguments", "options")


def is_long(parser: argparse.ArgumentParser) -> bool:
    """Whether a command has so many options that ``--help`` cannot list them."""
    return len(parser._actions) >= LONG


def find(parser: "OptionParser", word: str) -> str | None:
    """The page for ``--help=<word>``; None when nothing has that name.

    ``all`` is every option, ``listgroup`` the groups; else a group's name, an option's name, or a part of such names.
    """
    if word == "all":
        return parser.format_full_help().rstrip()
    if word == "listgroup":
        return _groups(parser)
    for group in parser._action_groups:
        if (group.title or "").lower() == word.lower():
            return _section(parser, group.title or "", group.description, group._group_actions)
    option = "--" + word.lstrip("-").replace("_", "-")
    short = "-" + word.lstrip("-")
    action = parser.options().get(option) or parser.options().get(short)
    if action is not None:
        return _section(parser, _group_of(parser, action), None, [action], detailed=True)
    part = word.lstrip("-").replace("_", "-").lower()
    matching = [
        action for action in parser._actions if any(part in spelling.lower() for spelling in action.option_strings)
    ]
    if matching and part:
        return _section(parser, f"options with {part!r} in their names", None, matching)
    names = [group.title or "" for group in parser._action_groups]
    near = difflib.get_close_matches(option, parser.options(), n=3) or difflib.get_close_matches(word, names, n=3)
    return f"Nothing is named {word!r}; near are {', '.join(near)}." if near else None


def short(parser: argparse.ArgumentParser) -> str:
    """What most users need, the groups, and how to see more."""
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, parser._actions, [])
    formatter.add_text(parser.description)
    formatter.start_section("arguments")
    formatter.add_arguments([action for action in parser._actions if not action.option_strings])
    formatter.end_section()
    formatter.start_section("common options")
    formatter.add_arguments([action for action in parser._actions if getattr(action, "common", False)])
    formatter.end_section()
    prog = parser.prog
    return (
        f"{formatter.format_help()}\n{_groups(parser)}\n\n"
        f"more:\n"
        f"  {prog} --help=all            every option\n"
        f"  {prog} --help=listgroup      the groups\n"
        f"  {prog} --help=<Group>        the options of a group\n"
        f"  {prog} --help=<option>       one option, such as --help=max-num-seqs\n"
        f"  {prog} --help=<keyword>      the options with a word in their names, such as --help=max\n"
        f"{_epilog(parser)}"
    )


def _epilog(parser: argparse.ArgumentParser) -> str:
    formatter = parser._get_formatter()
    formatter.add_text(parser.epilog)
    text = formatter.format_help()
    return f"\n{text}" if text else ""


def _groups(parser: argparse.ArgumentParser) -> str:
    rows = [
        (group.title or "", len(group._group_actions), group.description or "")
        for group in parser._action_groups
        if group._group_actions and group.title not in _PLAIN_GROUPS
    ]
    width = max((len(title) for title, _, _ in rows), default=0)
    return "groups:\n" + "\n".join(f"  {title:<{width}}  {count:>3}  {text}" for title, count, text in rows)


def _section(
    parser: argparse.ArgumentParser,
    title: str,
    description: str | None,
    actions: list[argparse.Action],
    *,
    detailed: bool = False,
) -> str:
    formatter = parser._get_formatter()
    formatter.start_section(title)
    formatter.add_text(description)
    formatter.add_arguments(actions)
    formatter.end_section()
    page = formatter.format_help().strip()
    if detailed and getattr(actions[0], "takes_keys", False):
        page += f"\n\n  Its keys may be given one by one: {actions[0].option_strings[0]}.key value"
        keys: dict[str, str] = getattr(actions[0], "keys", {})
        width = max(map(len, keys), default=0)
        page += "".join(f"\n    {key:<{width}}  {text}" for key, text in keys.items())
    return page


def _group_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return next(group.title or "" for group in parser._action_groups if action in group._group_actions)
