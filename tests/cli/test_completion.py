"""The completion scripts, tried in the shells themselves; a shell that is not installed is skipped."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_cli.main import main

CASES = [
    ("vllm comp", {"complete", "completion"}),
    ("vllm serve --max-num-p", {"--max-num-partial-prefills"}),
    ("vllm serve --max_nothing", set()),
    ("vllm serve --dtype bf", {"bfloat16"}),
    ("vllm serve demo --dtype bf", {"bfloat16"}),
    ("vllm serve --prefix-caching-hash-algo xx", {"xxhash", "xxhash_cbor"}),
    ("vllm serve --no-enable-pref", {"--no-enable-prefix-caching"}),
    ("vllm serve settings.y", {"settings.yaml"}),
    ("vllm bench s", {"serve", "startup", "sweep"}),
    ("vllm bench serve --num-prom", {"--num-prompts"}),
    ("vllm bench serve --max-num-s", set()),
    ("vllm bench plot settings.y", {"settings.yaml"}),
    ("vllm bench sweep s", {"serve"}),
    ("vllm bench sweep serve --serve-c", {"--serve-cmd"}),
    ("vllm chat --q", {"--quick"}),
    ("vllm completion f", {"fish"}),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script of a shell, in a file; the folder also has a file to complete."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    path = folder / f"vllm.{shell}"
    path.write_text(capsys.readouterr().out)
    (folder / "settings.yaml").touch()
    return path


def output(command: list[str], folder: Path, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("bash", tmp_path, capsys)
    try_each = f"""
    source {path}
    while read -r line; do
      COMP_WORDS=($line); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
      _vllm; echo "${{COMPREPLY[*]}}"
    done
    """
    lines = output(
        ["bash", "--norc", "-c", try_each], tmp_path, "\n".join(line for line, _ in CASES) + "\n"
    ).splitlines()
    assert [set(line.split()) for line in lines] == [expected for _, expected in CASES]


def test_bash_completes_a_value_after_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("bash", tmp_path, capsys)
    words = "COMP_WORDS=(vllm serve --dtype = bf); COMP_CWORD=4; _vllm; echo ${COMPREPLY[*]}"
    assert output(["bash", "--norc", "-c", f"source {path}; {words}"], tmp_path) == "bfloat16\n"


def test_fish_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", tmp_path, capsys)
    for line, expected in CASES:
        shown = output(["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"], tmp_path)
        found = {row.partition("\t")[0] for row in shown.splitlines()}
        assert found == expected, line


def test_zsh_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("zsh", tmp_path, capsys)
    # compadd is what every completion function ends in: here it only says what it would add.
    try_each = f"""
    zmodload zsh/zpty
    zpty shell zsh -f -i
    send() {{ zpty -w shell "$1" }}
    send "PROMPT=; RPROMPT=; autoload -Uz compinit; compinit -u -d {tmp_path}/dump; source {path}"
    send 'zstyle ":completion:*" list-separator "::"; setopt no_beep auto_list no_list_ambiguous no_menu_complete'
    send "bindkey '^I' expand-or-complete; echo RE''ADY"
    zpty -r -m shell line '*READY*'
    zpty -w -n shell $'vllm serve --dtype bf\\t'
    sleep 1
    zpty -w -n shell $'; echo DO''NE\\n'
    zpty -r -m shell line '*DONE*'
    print -r -- $line
    zpty -d shell
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", try_each], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert "bfloat16" in done.stdout, done
