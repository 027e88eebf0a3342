"""What ``vllm serve`` says to likely mistakes: one line that names the flag, exit code 2, no traceback."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from vllm_cli.main import main
from vllm_engine.config.model_files import resolve_model

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

HELP = " (`vllm serve --help` lists the options)"


@pytest.fixture(autouse=True)
def quiet_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that ``vllm serve`` ends with, without its beginning."""
    try:
        code = main(["serve", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("vllm serve: error: ")
    return line.removeprefix("vllm serve: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--nonsense", "3"], "there is no option --nonsense"),
        (["demo", "--max-num-seq=3"], "there is no option --max-num-seq; did you mean --max-num-seqs?"),
        (["demo", "--max-model-length", "9"], "there is no option --max-model-length; did you mean --max-model-len?"),
        (["demo", "other"], "'other' is one argument too many"),
        (["--model"], "--model: expected one argument"),
        (["demo", "--enforce_eager=true"], "--enforce-eager is a switch and takes no value, got 'true'"),
        (["demo", "--no-enforce-eager=1"], "--no-enforce-eager is a switch and takes no value, got '1'"),
        (["demo", "--hf-overrides", "[1]"], "--hf-overrides: expected a JSON object such as '{\"key\": 1}', got '[1]'"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_nearest_option(capsys, arguments: list[str], message: str) -> None:
    assert error_of(capsys, *arguments) == message + HELP


def test_a_value_that_is_none_of_the_choices_comes_with_all_of_them(capsys) -> None:
    error = error_of(capsys, "demo", "--dtype", "float8")
    assert error.startswith("--dtype must be one of ")
    assert error.endswith("got 'float8'; did you mean float?")
    assert all(choice in error for choice in ("auto", "half", "float16", "bfloat16", "float32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-num-seqs", "0"], "--max-num-seqs must be a whole number of at least 1, got '0'"),
        (["--port", "70000"], "--port must be a whole number of at least 0 and at most 65535, got '70000'"),
        (["--port=-1"], "--port must be a whole number of at least 0 and at most 65535, got '-1'"),
        (["--root-path", "llm"], "--root-path must be a path such as /llm, without a slash at its end, got 'llm'"),
        (
            ["--max-model-len", "x"],
            "--max-model-len must be a whole number of at least -1 or auto, got 'x'",
        ),
        (["--model", "other"], "two models are named: demo and --model other"),
        (["--chat-template", "no.jinja"], "--chat-template: no such file, and not a Jinja template: no.jinja"),
        (["--generation-config", "no"], "--generation-config: there is no generation_config.json in no"),
        (["--hf-overrides", '{"colour": 1}'], "--hf-overrides: Qwen3ForCausalLM does not read colour"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_named_by_its_flag(capsys, arguments: list[str], message: str) -> None:
    assert error_of(capsys, "demo", "--port", "0", *arguments) == message


def test_a_port_in_use_is_told_before_the_model_is_looked_for(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = error_of(capsys, "./no-such-model", "--port", str(port))
    assert error.startswith(f"--port: cannot listen on 127.0.0.1 port {port}: ")
    assert error.endswith("; name another port, or 0 for any free one")


@pytest.mark.parametrize(("host", "says"), [("no such host", "cannot listen on host"), ("192.0.2.1", "0.0.0.0")])
def test_a_host_that_is_not_this_machine_is_told(capsys, host: str, says: str) -> None:
    error = error_of(capsys, "demo", "--host", host)
    assert error.startswith("--host: ")
    assert says in error


def test_a_model_folder_that_is_not_there_is_told(capsys) -> None:
    assert error_of(capsys, "./nowhere", "--port", "0") == "model folder ./nowhere does not exist"


def test_a_hub_model_without_network_points_to_folders_and_the_demo(capsys, monkeypatch, tmp_path: Path) -> None:
    error = error_of(capsys, "owner/name", "--port", "0", "--download-dir", str(tmp_path))
    assert error.startswith("model owner/name could not be fetched from the hub")
    assert error.endswith("A folder on this machine works without network, and so does the built-in model: demo")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be spoiled."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("demo"), folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    return folder


def test_an_architecture_that_is_not_supported_comes_with_those_that_are(capsys, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    error = error_of(capsys, str(model), "--port", "0")
    assert error.startswith("config.json: architecture MambaForCausalLM is not supported; supported: ")
    assert "LlamaForCausalLM" in error


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_that_cannot_be_read_is_named(capsys, model: Path, file: str) -> None:
    (model / file).write_text('{"half": ')
    assert file in error_of(capsys, str(model), "--port", "0")


def test_a_context_longer_than_the_models_is_refused_with_its_length(capsys) -> None:
    error = error_of(capsys, "demo", "--port", "0", "--max-model-len", "100k")
    assert error.startswith("--max-model-len=100000 is more than the 2048 positions of the model; ")


@pytest.mark.slow
def test_too_small_a_kv_cache_is_refused_with_the_length_it_would_hold(capsys) -> None:
    error = error_of(capsys, "demo", "--port", "0", "--no-use-tqdm-on-load", "--kv-cache-memory-bytes", "100k")
    assert error.endswith("lower --max-model-len to 32 (or to auto), or raise --kv-cache-memory-bytes")


@pytest.mark.slow
def test_a_chat_template_that_does_not_compile_is_refused_wherever_it_comes_from(capsys, model: Path) -> None:
    broken = "{% for message in messages %}{{ message.content }}"
    flags = ["--port", "0", "--no-use-tqdm-on-load", "--kv-cache-memory-bytes", "8M"]
    assert error_of(capsys, "demo", *flags, "--chat-template", broken).startswith("--chat-template: the chat template")
    (model / "chat_template.jinja").write_text(broken)
    error = error_of(capsys, str(model), *flags)
    assert error.startswith("in the model's files, the chat template is broken: ")
    assert error.endswith("; --chat-template names another")
