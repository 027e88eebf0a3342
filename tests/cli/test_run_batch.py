"""``vllm run-batch`` as it is typed: its help, what it prints, and what it says to likely mistakes."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server import fake_serve
from tests.server.fake_llm import letters
from vllm_cli.main import main

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

Command = Callable[..., int]


def line(custom_id: str = "a", *, url: str = "/v1/completions", **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(line(prompt="hi", max_tokens=3))
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, source: Path, output: Path) -> Command:
    """``command(*flags)``: the exit code of a run with the scripted engine."""
    monkeypatch.setitem(sys.modules, "vllm_engine.async_llm", fake_serve.module())
    monkeypatch.setattr(fake_serve, "SCRIPT", {})
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    return lambda *flags: main(["run-batch", "demo", "-i", str(source), "-o", str(output), *flags])


def results(output: Path) -> list[Any]:
    return [json.loads(item) for item in output.read_text().splitlines()]


def test_a_run_ends_with_one_line_that_counts(command: Command, source: Path, output: Path, capsys) -> None:
    source.write_text(source.read_text() + "wrong\n")
    assert command("--enable-metrics", "--url", "127.0.0.1", "--port", "0") == 0
    assert f"2 requests, 1 failed: {output}\n" in capsys.readouterr().out
    assert results(output)[0]["response"]["body"]["choices"][0]["text"] == letters(3)


def test_the_newer_name_of_the_address_of_the_metrics_wins(command: Command) -> None:
    nobodys = ["--enable-metrics", "--port", "0", "--url", "192.0.2.1"]
    assert command(*nobodys) == 2
    assert command(*nobodys, "--host", "127.0.0.1") == 0


def test_settings_may_stand_in_a_file_and_are_printed_as_one(
    command: Command, source: Path, output: Path, tmp_path: Path, capsys
) -> None:
    source.write_text(line(url="/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=1))
    settings = tmp_path / "settings.yaml"
    settings.write_text("response-role: parrot\nmax-num-seqs: 4\n")
    assert command("--config", str(settings), "--print-config") == 0
    printed = capsys.readouterr().out
    assert "response-role: parrot\n" in printed and "max-num-seqs: 4\n" in printed and "input-file: " in printed
    assert not output.exists()
    assert command("--config", str(settings)) == 0
    assert results(output)[0]["response"]["body"]["choices"][0]["message"]["role"] == "parrot"


def test_the_engine_may_be_asked_for_by_old_settings(command: Command, output: Path) -> None:
    assert command("--disable-log-requests", "--use-v2-block-manager", "--disable-log-stats") == 0
    assert len(results(output)) == 1


@pytest.mark.parametrize(
    ("flags", "script", "code", "message"),
    [
        (["-i", "no/such/file"], {}, 2, "--input-file: cannot read no/such/file: No such file or directory"),
        (["-i", "/"], {}, 2, "--input-file: / is not a regular file"),
        (["-i", ""], {}, 2, "--input-file must be the path of a file or a URL; it is not given"),
        (["-i", "https://anna:geheim@/in.jsonl"], {}, 2, "--input-file begins like a URL and is none"),
        (["-o", "http://server:x/out.jsonl"], {}, 2, "--output-file begins like a URL and is none"),
        (["--max-inflight", "0"], {}, 2, "--max-inflight must be a whole number"),
        (["-o", "no/such/out_put.jsonl"], {}, 2, "--output-file: cannot write to no/such/out_put.jsonl: there is no"),
        (["-o", "/dev/null"], {}, 2, "--output-file: cannot write to /dev/null: it is not a regular file"),
        (["--output-tmp-dir", "no/such"], {}, 2, "--output-tmp-dir: cannot write to no/such: No such file"),
        (["--port", "70000"], {}, 2, "--port must be a whole number"),
        (["--max-num-seqs", "0"], {}, 2, "--max-num-seqs must be a whole number"),
        (["--chat-template", "no/such"], {}, 2, "--chat-template: no such file"),
        (["--chat-template", "{% if %}"], {}, 2, "--chat-template: "),
        ([], {"fails": "config"}, 2, "--max-model-len: too long for the cache"),
        ([], {"fails": "dead"}, 1, "the engine could not start: the engine process ended with code 1"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(
    command: Command,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    flags: list[str],
    script: dict[str, Any],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(fake_serve, "SCRIPT", script)
    assert command(*flags) == code
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"vllm run-batch: error: {message}")
    assert list(source.parent.iterdir()) == [source]


def test_the_input_is_not_overwritten(command: Command, source: Path, capsys) -> None:
    assert command("-o", str(source)) == 2
    assert capsys.readouterr().err.endswith(": it is the input\n")


def test_an_engine_that_dies_ends_the_run_with_one(
    command: Command, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(fake_serve, "SCRIPT", {"dies_after": 0.0})
    source.write_text(line("first", prompt="hi", max_tokens=1) + line(prompt="!dead-after-3"))
    assert command() == 1
    (partial,) = source.parent.glob("out.jsonl.*.partial")
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vllm run-batch: error: the engine has died: ")
    assert error.endswith(f"; 1 answers are in {partial}, and the same command goes on after them")
    assert [result["custom_id"] for result in results(partial)] == ["first"]
    assert not output.exists()


def test_a_disk_that_is_full_ends_the_run_with_one(command: Command, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Full(io.BufferedRandom):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    full = lambda descriptor, mode: Full(io.FileIO(descriptor, mode))  # noqa: E731
    monkeypatch.setattr("vllm_server.batch.journal.open", full, raising=False)
    assert command() == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vllm run-batch: error: cannot write ")
    assert error.endswith(": No space left on device; there is no answer yet")


def test_help_has_the_forms_of_a_long_command_and_imports_nothing_heavy() -> None:
    script = """
import sys
from vllm_cli.main import main
try:
    main(["run-batch", sys.argv[1]])
except SystemExit:
    pass
heavy = {"torch", "transformers", "numpy", "fastapi", "starlette", "uvicorn", "prometheus_client", "httpx", "tqdm"}
heavy &= sys.modules.keys()
if heavy: sys.exit(f"imported: {heavy}")
"""
    for form, words in {
        "--help": ["--input-file FILE, -i FILE", "RunBatch", "EngineArgs", "exit codes: 0 every line has its answer"],
        "--help=RunBatch": ["--output-tmp-dir", "--enable-metrics", "--response-role"],
        "--help=listgroup": ["RunBatch"],
        "--help=max-log-len": ["--max-log-len INT"],
        "--help=all": ["--max-num-seqs", "--use-v2-block-manager", "130 Ctrl-C"],
    }.items():
        done = subprocess.run([sys.executable, "-c", script, form], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        for word in words:
            assert word in done.stdout
    assert "--allowed-origins" not in done.stdout


def test_without_its_wheel_the_command_says_what_to_install(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotInstalled:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "vllm_server":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module in [name for name in sys.modules if name.split(".")[0] == "vllm_server"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    assert main(["run-batch", "--help"]) == 2
    assert capsys.readouterr().err.startswith("vllm: error: `vllm run-batch` needs more than vllm-cli: ")


def test_the_demo_model_answers_a_file(source: Path, output: Path) -> None:
    """The whole of it: the command, an engine in a process of its own, the model."""
    capital = [{"role": "user", "content": "What is the capital of France?"}]
    source.write_text(
        line("chat", url="/v1/chat/completions", model="demo", messages=capital, temperature=0)
        + line("text", model="demo", prompt="The capital of Italy is", max_tokens=8, temperature=0)
        + line("wrong", model="demo", prompt="Hello", max_tokens=-1)
    )
    flags = ["-i", str(source), "-o", str(output), "--kv-cache-memory-bytes", "16M"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_cli", "run-batch", "demo", *flags], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"3 requests, 1 failed: {output}\n"), done.stderr
    chat, text, wrong = results(output)
    assert [chat["custom_id"], text["custom_id"], wrong["custom_id"]] == ["chat", "text", "wrong"]
    assert "Paris" in chat["response"]["body"]["choices"][0]["message"]["content"]
    assert "Rome" in text["response"]["body"]["choices"][0]["text"]
    assert (wrong["response"]["status_code"], wrong["error"]["param"]) == (400, "max_tokens")
