"""Write ``docs/configuration.md`` from the declared settings; ``--check`` only says whether it is as it should be."""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from vllm_engine import envs
from vllm_engine.config import EngineConfig
from vllm_engine.config.cli import shown
from vllm_engine.config.device import DeviceKind
from vllm_engine.config.old_options import OldOptions
from vllm_engine.config.settings import Setting, group_summaries, keys_of, settings_of
from vllm_engine.config.support import possible, standing
from vllm_engine.config.values import allowed, choices_of
from vllm_server.batch.config import BatchConfig
from vllm_server.config import OldServerOptions, ServerConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from the declared settings; what is edited here by hand is lost. -->

Every setting is declared once, in `vllm_engine/config/groups/` (those of the server in `vllm_server/config.py`). It is

- a flag of `vllm serve` and `vllm run-batch`: `--max-num-seqs 64`,
- a keyword of `LLM(...)`, `EngineArgs(...)`: `max_num_seqs=64` (not those of the server),
- a key of the YAML file that `--config` names: `max-num-seqs: 64`.

The command line wins over the file, the file over the environment, the environment over the defaults.
`vllm serve ... --print-config` prints the settings that were given as such a file and ends.

| on the command line | means |
| --- | --- |
| `--flag value`, `--flag=value`, `--some_flag value` | dashes and underscores are the same |
| `--switch`, `--no-switch` | true, false |
| `-tp 2`, `-tp2`, `-O3` | short forms |
| `4096`, `4k`, `4K`, `25.6k`, `2M` | whole numbers: k m g t are powers of 1,000, K M G T powers of 1,024 |
| `--list a b c` | a list; numbers also as `1,2,4` |
| `--object '{"key": {"inner": 1}}'` | an object |
| `--object.key.inner 1` | the same, key by key; laid over the object of the file |
| `--object.list+ a --object.list+=b,c` | the list `a, b, c` in an object |

`vllm serve --help` shows the common flags and the groups; `--help=<Group>`, `--help=<flag>`, `--help=<keyword>`,
`--help=listgroup` and `--help=all` show more. `vllm completion bash|zsh|fish` prints a script for the shell.

A setting either takes effect, or it is refused at start with exit code 2 because this version or machine cannot
honour it (values under "possible" are taken), or it is accepted and a line in the log says why it changes nothing.
Where a CPU and an NVIDIA GPU differ in that, the last column has both.
"""


def page() -> str:
    """The whole page."""
    old = [*settings_of(OldOptions).values(), *settings_of(OldServerOptions).values()]
    parts = [INTRODUCTION, _counts(old)]
    for config in (ServerConfig, BatchConfig, EngineConfig):
        for group, summary in group_summaries(config).items():
            settings = [setting for setting in settings_of(config).values() if setting.group == group]
            parts += [f"## {group}\n\n{summary}\n", _table(settings)]
            parts += [_keys(setting) for setting in settings if setting.keys is not None]
    parts += ["## Earlier spellings\n\nStill accepted, each with one warning.\n", _old(old)]
    parts += ["## Environment variables\n", _environment()]
    return "\n".join(parts)


def _counts(old: list[Setting]) -> str:
    lines = ["| | take effect | refused where not possible | no effect | all |", "| --- | ---: | ---: | ---: | ---: |"]
    parts: tuple[tuple[str, type[Any], DeviceKind], ...] = (
        ("engine", EngineConfig, "cpu"),
        ("engine on a GPU", EngineConfig, "cuda"),
        ("`vllm serve`", ServerConfig, "cpu"),
        ("`vllm run-batch`", BatchConfig, "cpu"),
    )
    for title, config, device in parts:
        settings = settings_of(config).values()
        count = Counter(standing(setting, device) for setting in settings)
        lines.append(f"| {title} | {count['effect']} | {count['refused']} | {count['no effect']} | {len(settings)} |")
    mapped = sum(setting.facts["becomes"] is not None for setting in old)
    refused = sum(setting.facts["refused"] for setting in old)
    lines.append(
        f"| earlier spellings | {mapped} become new ones | {refused} | {len(old) - mapped - refused} | {len(old)} |"
    )
    return "\n".join(lines) + "\n"


def _table(settings: list[Setting]) -> str:
    lines = ["| flag | takes | default | for | |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        flags = ", ".join(f"`{flag}`" for flag in (setting.flag, *setting.short))
        lines.append(
            f"| {flags} | {_takes(setting)} | {_default(setting)} | {_cell(setting.help)} | {_note(setting)} |"
        )
    return "\n".join(lines) + "\n"


def _keys(setting: Setting) -> str:
    keys = keys_of(setting.keys) if setting.keys is not None else {}
    lines = [f"Keys of `{setting.flag}`:\n", "| key | takes | default | for | |", "| --- | --- | --- | --- | --- |"]
    for name, key in keys.items():
        lines.append(f"| `{name}` | {_takes(key)} | {_default(key)} | {_cell(key.help)} | {_note(key)} |")
    return "\n".join(lines) + "\n"


def _old(settings: list[Setting]) -> str:
    lines = ["| flag | instead | |", "| --- | --- | --- |"]
    for setting in settings:
        note = (
            "refused" if setting.facts["refused"] else "no effect" if setting.facts["becomes"] is None else "translated"
        )
        lines.append(f"| `{setting.flag}` | {_cell(setting.help)} | {note} |")
    return "\n".join(lines) + "\n"


def _environment() -> str:
    lines = ["| variable | default | for | |", "| --- | --- | --- | --- |"]
    for name, variable in envs.VARIABLES.items():
        default = "" if variable.default is None else f"`{variable.default}`"
        note = f"no effect: {variable.no_effect}" if variable.no_effect else ""
        lines.append(f"| `{name}` | {default} | {_cell(variable.meaning)} | {_cell(note)} |")
    return "\n".join(lines) + "\n"


def _takes(setting: Setting) -> str:
    choices = choices_of(setting.hint)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if setting.facts.get("json"):
        return f"a list; as a flag, of JSON: `'{json.dumps(setting.default)}'`"
    return _cell(allowed(setting))


def _default(setting: Setting) -> str:
    default: Any = setting.default
    if default in (None, "") or dataclasses.is_dataclass(default):
        return ""
    return f"`{shown(default)}`" if default not in ({}, []) else ""


def _note(setting: Setting) -> str:
    note = _note_on(setting, "cpu")
    if setting.facts["cuda"] is None:
        return note
    return "; ".join(
        (f"on a CPU: {note or 'takes effect'}", f"on a GPU: {_note_on(setting, 'cuda') or 'takes effect'}")
    )


def _note_on(setting: Setting, device: DeviceKind) -> str:
    support = setting.support_on(device)
    if support.unsupported:
        return _cell(f"possible: {possible(setting, device)} ({support.unsupported})")
    return _cell(f"no effect: {support.no_effect}") if support.no_effect else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is what it should be")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/configuration.md is not what the settings say; `make docs` writes it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
