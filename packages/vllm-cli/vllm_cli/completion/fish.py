"""The script for fish: ``vllm completion fish | source``."""

from vllm_cli.completion.surface import CommandSurface, Option

_HEAD = """\
# fish completion for vllm; load it by: vllm completion fish | source
function __vllm_at --description 'whether these words follow vllm'
    set -l words (commandline -opc | string match --invert -- '-*')
    for i in (seq (count $argv))
        set -l at (math $i + 1)
        test (count $words) -ge $at; and test $words[$at] = $argv[$i]; or return 1
    end
end
complete -c vllm -f
"""


def script(commands: list[CommandSurface]) -> str:
    """The whole script."""
    lines = [line for command in commands for line in _command(command, "__fish_use_subcommand")]
    return _HEAD + "\n".join(lines) + "\n"


def _command(command: CommandSurface, before: str) -> list[str]:
    """A command, where the condition ``before`` holds, with its options and sub-commands."""
    here = f"__vllm_at {' '.join(command.words)}"
    for inner in command.subcommands:
        here += f"; and not __vllm_at {' '.join(inner.words)}"
    lines = [_word(command, before)]
    if not command.subcommands:
        words = f"-a {_quoted(' '.join(command.arguments))}" if command.arguments else "-F"
        lines.append(f"complete -c vllm -n {_quoted(here)} {words}")
    lines += _options(command, here)
    return [*lines, *(line for inner in command.subcommands for line in _command(inner, here))]


def _word(command: CommandSurface, condition: str) -> str:
    return f"complete -c vllm -n {_quoted(condition)} -a {command.words[-1]} -d {_quoted(command.summary)}"


def _options(command: CommandSurface, condition: str) -> list[str]:
    lines = []
    for option in command.options:
        for flag in option.flags:
            spelling = f"-l {flag[2:]}" if flag.startswith("--") else _short(flag)
            parts = [f"complete -c vllm -n {_quoted(condition)} {spelling} -d {_quoted(option.help)}"]
            if option.takes_value and not flag.startswith("--no-"):
                parts.append(_values(option))
            lines.append(" ".join(parts))
    return lines


def _short(flag: str) -> str:
    return f"-s {flag[1:]}" if len(flag) == 2 else f"-o {flag[1:]}"


def _values(option: Option) -> str:
    return f"-x -a {_quoted(' '.join(option.values))}" if option.values else "-r -F"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
