"""The script for bash: ``source <(vllm completion bash)``."""

from vllm_cli.completion.surface import CommandSurface

_SCRIPT = """\
# bash completion for vllm; load it by: source <(vllm completion bash)
_vllm() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command="" word
  # --flag=value comes as three words
  if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$command/$word" in
      */-*) ;;
{nested}
      /*) command=$word ;;
    esac
  done
  local values="" options=""
  case "$command $prev" in
{values}
  esac
  case "$command" in
{options}
  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$cur"))
  elif [[ $cur == -* || -z $command || ${{options:0:1}} != "-" ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}}
complete -o filenames -F _vllm vllm
"""


def script(commands: list[CommandSurface]) -> str:
    """The whole script."""
    below = [inner for command in commands for inner in command.all_below()]
    every = [*commands, *below]
    nested = [
        f'      "{" ".join(inner.words[:-1])}/{inner.words[-1]}") command="{" ".join(inner.words)}" ;;'
        for inner in below
    ]
    values = [
        f'    "{" ".join(command.words)} {flag}") values="{" ".join(option.values)}" ;;'
        for command in every
        for option in command.options
        if option.values
        for flag in option.flags
        if not flag.startswith("--no-")
    ]
    options = ['    "") options="' + " ".join(command.words[0] for command in commands) + '" ;;']
    for command in every:
        words = [*command.arguments, *(inner.words[-1] for inner in command.subcommands)]
        words += [flag for option in command.options for flag in option.flags]
        options.append(f'    "{" ".join(command.words)}") options="{" ".join(words)}" ;;')
    return _SCRIPT.format(nested="\n".join(nested), values="\n".join(values), options="\n".join(options))
