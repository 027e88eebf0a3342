"""What the READMEs tell people to type can be typed."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from vllm_cli import registry
from vllm_cli.main import main
from vllm_cli.option_parser import OptionParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "packages").glob("*/README.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """The name of the document and the text of every block in ``language``."""
    return [
        (str(path.relative_to(ROOT)), text)
        for path in DOCUMENTS
        for found, text in BLOCK.findall(path.read_text(encoding="utf-8"))
        if found == language
    ]


def command_lines() -> list[tuple[str, str]]:
    """Every line that runs ``vllm``, without the prompt, and the line below it."""
    lines = [line for language in ("", "console") for _, text in blocks(language) for line in [*text.splitlines(), ""]]
    pairs = zip(lines, [*lines[1:], ""], strict=True)
    command = re.compile(r"(?:\$ )?(?:\.venv/bin/)?(vllm [a-z-]+(?: .*)?)")
    return [(match[1], below) for line, below in pairs if (match := command.fullmatch(line))]


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(("line", "below"), sorted(set(command_lines())))
def test_a_command_that_is_shown_is_one_that_is_understood(line: str, below: str, capsys, monkeypatch) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    if below.startswith(f"vllm {name}: error: "):
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        # A free port, because the documents' own server may be running.
        try:
            code = main([name, *arguments, "--port", "0"])
        except SystemExit as end:
            code = int(end.code or 0)
        assert code == 2
        assert capsys.readouterr().err == below + "\n"
        return
    command = registry.load(name)
    parser = OptionParser(prog=f"vllm {name}", allow_abbrev=False)
    command.add_arguments(parser)
    parser.parse_args(arguments)


@pytest.mark.parametrize(("document", "text"), blocks("python"))
def test_the_python_that_is_shown_is_python(document: str, text: str) -> None:
    # Some of it awaits, so all of it is read as the body of a coroutine.
    body = "".join(f"    {line}\n" for line in text.splitlines())
    ast.parse(f"async def shown():\n{body}", filename=document)


def test_the_documents_show_commands_and_python() -> None:
    assert len(command_lines()) >= 8
    assert len(blocks("python")) >= 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_link_within_the_repository_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []
