"""Command-line flags made from settings; nothing about a flag is written twice.

A setting ``max_num_seqs`` becomes ``--max-num-seqs``. Only the shape of a flag is told to ``argparse`` here:

=====================  ==============================================================
``bool``               ``--name`` and ``--no-name``
``list[...]``          one or more words
``dict[...]``, groups  a JSON object, or its keys one by one (``--name.key value``)
anything else          one word
=====================  ==============================================================

What the words mean, and whether they are allowed, is decided where all settings are read (``values.convert``).
"""

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Sequence
from typing import Any

from vllm_engine.config.device import DeviceKind
from vllm_engine.config.settings import Setting, group_summaries, keys_of, settings_of
from vllm_engine.config.values import choices_of, plain, takes_keys


def add_settings(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add a flag for each setting of the configuration dataclass ``config``, under the headings of its groups.

    A flag that is not given leaves no trace in the namespace, so that defaults stay where they are declared.
    """
    summaries = group_summaries(config)
    # Private, but argparse has no other way to find a group: two configurations may share a heading.
    sections: dict[str, Any] = {group.title: group for group in parser._action_groups if group.title}
    for setting in settings_of(config).values():
        if setting.group not in sections:
            sections[setting.group] = parser.add_argument_group(setting.group, summaries[setting.group])
        action = sections[setting.group].add_argument(
            setting.flag,
            *setting.short,
            dest=setting.name,
            default=argparse.SUPPRESS,
            help=_help(setting),
            **_shape(setting),
        )
        action.takes_keys = takes_keys(setting)
        action.common = bool(setting.facts.get("common"))
        action.keys = {name: key.help for name, key in keys_of(setting.keys).items()} if setting.keys else {}
        action.allowed = [str(choice) for choice in choices_of(setting.hint)]


def given_settings(namespace: argparse.Namespace, *configs: type[Any]) -> dict[str, Any]:
    """The settings of ``configs`` that were given on the command line, by name, as they were written."""
    given = vars(namespace)
    return {name: given[name] for config in configs for name in settings_of(config) if name in given}


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ``argparse.ArgumentTypeError`` with the place of the mistake."""
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"key\": 1}}', got {text[:200]!r}")
    return value


def _object_reader(setting: Setting) -> Callable[[str], dict[str, Any]]:
    """A JSON object; a number alone stands for the key that the setting names as ``number_means``."""
    key = setting.facts.get("number_means")
    return lambda text: {key: int(text)} if key and text.isdecimal() else json_object(text)


def json_list(text: str) -> list[Any]:
    """A JSON list. Raises ``argparse.ArgumentTypeError`` with the place of the mistake."""
    value = _json(text)
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"expected a JSON list such as '[\"*\"]', got {text[:200]!r}")
    return value


def shown(value: Any) -> str:
    """A default value in help and documentation."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return json.dumps(dataclasses.asdict(value))
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


class _Switch(argparse.Action):
    """``--name`` is true, ``--no-name`` is false; short flags are true."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        negated = [f"--no-{flag[2:]}" for flag in option_strings if flag.startswith("--")]
        super().__init__([*option_strings, *negated], dest, nargs=0, **settings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {text[:200]!r}") from error


def _shape(setting: Setting) -> dict[str, Any]:
    """What ``add_argument`` needs to know about a setting."""
    hint, metavar = plain(setting.hint), setting.facts.get("metavar")
    choices = choices_of(setting.hint)
    if choices:
        metavar = "{" + ",".join(map(str, choices)) + "}"
    if hint is bool:
        return {"action": _Switch}
    if takes_keys(setting):
        return {"type": _object_reader(setting), "metavar": metavar or "JSON"}
    if setting.facts.get("json"):
        return {"type": json_list, "metavar": metavar or "JSON"}
    if setting.facts.get("append"):
        return {"action": "append", "metavar": metavar or "VALUE"}
    if typing.get_origin(hint) is list:
        return {
            "action": "extend" if setting.facts.get("extend") else None,
            "nargs": "+",
            "metavar": metavar or "VALUE",
        }
    if setting.facts.get("bare"):
        return {"nargs": "?", "const": True, "metavar": metavar or "VALUE"}
    names: dict[Any, str] = {int: "INT", float: "NUMBER"}
    return {"metavar": metavar or names.get(hint, setting.flag.rpartition("-")[2].upper())}


def _help(setting: Setting) -> str:
    """The setting's line, its default, and what of it this version honours."""
    notes = []
    default = setting.default
    if not (default in (None, "", {}, []) or default is False or dataclasses.is_dataclass(default)):
        notes.append(f"default: {shown(default)}")
    on_cpu, on_gpu = _standing(setting, "cpu"), _standing(setting, "cuda")
    if on_cpu == on_gpu:
        notes += [f"{on_cpu} here"] if on_cpu else []
    else:
        notes += [f"{note} on a {device}" for note, device in ((on_cpu, "CPU"), (on_gpu, "GPU")) if note]
    text = f"{setting.help} ({'; '.join(notes)})" if notes else setting.help
    return text.replace("%", "%%")


def _standing(setting: Setting, device: DeviceKind) -> str:
    """What of it is honoured on a device, in words; empty for all."""
    support = setting.support_on(device)
    if support.no_effect:
        return "no effect"
    if not support.unsupported:
        return ""
    others = [shown(value) for value in support.possible]
    return f"beside the default only {', '.join(others)}" if others else "only the default"
