"""The script for zsh: ``source <(vllm completion zsh)``, or a file ``_vllm`` in a folder of ``fpath``."""

from vllm_cli.completion.surface import CommandSurface, Option

_SCRIPT = """\
#compdef vllm
# zsh completion for vllm; load it by: source <(vllm completion zsh)
{functions}
_vllm() {{
  _vllm_at_top
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
compdef _vllm vllm
"""


def script(commands: list[CommandSurface]) -> str:
    """The whole script."""
    return _SCRIPT.format(functions="\n".join(_functions(CommandSurface((), "", (), tuple(commands)))))


def _functions(command: CommandSurface) -> list[str]:
    """A function that completes a command, after those of its sub-commands."""
    functions = [text for inner in command.subcommands for text in _functions(inner)]
    name = _name(command)
    if not command.subcommands:
        specs = [spec for option in command.options for spec in _specs(option)]
        last = f"'1:value:({' '.join(command.arguments)})'" if command.arguments else "'*:file:_files'"
        lines = " \\\n".join(f"    {spec}" for spec in [*specs, last])
        return [*functions, f"{name}() {{\n  _arguments -S \\\n{lines}\n}}"]
    described = "\n".join(f"      {_quoted(f'{inner.words[-1]}:{inner.summary}')}" for inner in command.subcommands)
    cases = "\n".join(f"    {inner.words[-1]}) {_name(inner)} ;;" for inner in command.subcommands)
    return [
        *functions,
        f"{name}() {{\n"
        "  if (( CURRENT == 2 )); then\n"
        f"    local -a commands=(\n{described}\n    )\n"
        "    _describe command commands\n"
        "    return\n"
        "  fi\n"
        "  shift words\n"
        "  (( CURRENT-- ))\n"
        f"  case $words[1] in\n{cases}\n    *) _files ;;\n"
        "  esac\n"
        "}",
    ]


def _name(command: CommandSurface) -> str:
    return "_vllm_at_" + "_".join(command.words or ("top",)).replace("-", "_")


def _specs(option: Option) -> list[str]:
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    specs = []
    for flag in option.flags:
        if not option.takes_value or flag.startswith("--no-"):
            specs.append(_quoted(f"{flag}[{text}]"))
            continue
        action = f"({' '.join(option.values)})" if option.values else "_files"
        specs.append(_quoted(f"{flag}{'=' if flag.startswith('--') else ''}[{text}]:value:{action}"))
    return specs


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
