import os
import re
import subprocess
import sys
import textwrap
from argparse import Namespace
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

import vllm_cli
from vllm_cli import registry
from vllm_cli.command import Command, CommandError
from vllm_cli.main import main

HEAVY = ("torch", "transformers", "numpy", "httpx", "vllm_engine", "vllm_server", "vllm_kernels", "importlib.metadata")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_version_is_the_number_alone(capsys, flag):
    assert run(capsys, flag) == (0, f"{vllm_cli.__version__}\n", "")


def test_no_socket_gets_the_number_of_a_closed_standard_stream(tmp_path):
    program = f"""
        import contextlib, socket, subprocess, sys, vllm_cli.main
        with contextlib.suppress(SystemExit):
            vllm_cli.main.main(["--version"])
        assert vllm_cli.main.main([]) == 2  # with its help
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('heard')"], check=True)
        with socket.socket() as made, open({str(tmp_path / "number")!r}, "w") as file:
            file.write(str(made.fileno()))
    """
    close = lambda: [os.close(number) for number in range(3)]  # noqa: E731
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], preexec_fn=close, timeout=20)
    assert (tmp_path / "number").read_text() > "2"


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("serve", "chat", "complete", "collect-env", "bench"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "serv"], "error: 'serv' is none of serve, latency, throughput, startup, compare, plot, sweep"),
        (["bench", "serve", "--backend", "openai-cat"], "--backend: 'openai-cat' is none of openai, vllm, "),
        (["completion", "fsh"], "shell: 'fsh' is none of bash, zsh, fish"),
    ],
)
def test_a_word_that_is_none_of_the_choices_comes_with_all_of_them_and_the_nearest(capsys, arguments, said):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert re.search(r"; did you mean (serve|openai-chat|fish)\?", err)
    assert len(err.splitlines()) == 1


def test_no_command_shows_the_help_and_is_an_error(capsys):
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "commands:" in err


def test_an_unknown_command_suggests_the_nearest(capsys):
    code, out, err = run(capsys, "chta")
    assert (code, out) == (2, "")
    assert err == "vllm: error: there is no command 'chta'; did you mean 'chat'?\n"


def test_a_command_gets_the_options_after_its_name(capsys):
    code, out, _ = run(capsys, "chat", "--help")
    assert code == 0
    assert out.startswith("usage: vllm chat")
    assert "--system-prompt" in out


def test_an_unknown_option_of_a_command_is_one_line_with_the_nearest_and_exits_with_2(capsys):
    line = "vllm chat: error: there is no option --ulr; did you mean --url? (`vllm chat --help` lists the options)\n"
    assert run(capsys, "chat", "--ulr", "http://x") == (2, "", line)


def test_an_unknown_option_of_a_sub_command_is_compared_with_that_commands_options(capsys):
    code, out, err = run(capsys, "bench", "serve", "--num-prompt", "3")
    assert (code, out) == (2, "")
    assert err.startswith("vllm bench serve: error: there is no option --num-prompt; did you mean --num-prompts?")


def test_options_are_not_guessed_from_their_beginnings(capsys):
    code, _, err = run(capsys, "chat", "--mod", "x")
    assert code == 2
    assert "--mod" in err


@pytest.mark.parametrize(
    "arguments", [["--version"], ["chat", "--help"], ["complete", "--help"], ["collect-env", "-h"]]
)
def test_asking_for_help_imports_nothing_heavy(arguments):
    script = f"""
        import sys
        from vllm_cli.main import main
        try:
            main({arguments!r})
        except SystemExit as end:
            if end.code: raise
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        if heavy: sys.exit(f"imported: {{heavy}}")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_no_torch_and_no_numpy_though_it_looks_for_plugins():
    script = """
        import sys
        from vllm_cli.main import main
        try:
            main(["--help"])
        except SystemExit: pass
        sys.exit(any(name in sys.modules for name in ("torch", "transformers", "numpy", "httpx", "vllm_engine")))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["chat", "--help"]])
def test_help_and_version_are_there_in_a_moment(arguments):
    """The best of seven runs, and processor time, so that a busy machine does not decide; asked for are 0.3 s."""
    seconds = []
    for _ in range(7):
        before = os.times()
        subprocess.run([sys.executable, "-m", "vllm_cli", *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.3


def test_serve_without_its_wheel_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm_server", None)
    monkeypatch.delitem(sys.modules, "vllm_server.serve", raising=False)
    for arguments in (["serve", "demo"], ["serve", "--help"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err == (
            'vllm: error: `vllm serve` needs more than vllm-cli: pip install "vllm-cli[serve]" '
            "(or `make install` in a checkout)\n"
        )


def test_bench_without_its_wheel_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", dict)
    code, _, err = run(capsys, "bench", "serve")
    assert code == 2
    assert 'pip install "vllm-cli[bench]"' in err
    assert 'comes with "vllm-cli[bench]"' in run(capsys, "--help")[1]


def fake_server(monkeypatch: pytest.MonkeyPatch, run) -> None:
    module = ModuleType("vllm_server.serve")
    module.add_arguments = lambda parser: parser.add_argument("model_tag")  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm_server.serve", module)
    import vllm_server

    monkeypatch.setattr(vllm_server, "serve", module, raising=False)


def test_serve_hands_its_options_to_the_server_and_returns_its_code(capsys, monkeypatch):
    seen: list[Namespace] = []
    fake_server(monkeypatch, lambda options: seen.append(options) or 7)
    assert run(capsys, "serve", "demo")[0] == 7
    assert seen[0].model_tag == "demo"


def test_a_setting_that_cannot_be_honoured_is_one_line_and_exit_code_2(capsys, monkeypatch):
    from vllm_engine.errors import ConfigError

    def refuse(options: Namespace) -> int:
        raise ConfigError("max_num_seqs: expected at least 1, got 0", field="max_num_seqs")

    fake_server(monkeypatch, refuse)
    assert run(capsys, "serve", "demo") == (2, "", "vllm: error: max_num_seqs: expected at least 1, got 0\n")


def test_an_import_error_inside_the_server_is_not_mistaken_for_a_missing_wheel(capsys, monkeypatch):
    def broken(options: Namespace) -> int:
        raise ModuleNotFoundError("No module named 'something'", name="something")

    fake_server(monkeypatch, broken)
    with pytest.raises(ModuleNotFoundError):
        main(["serve", "demo"])


def test_another_wheel_adds_a_command_by_entry_point(capsys, monkeypatch):
    module = ModuleType("greeting")
    module.COMMAND = Command("Say hello", lambda parser: None, lambda options: print("hello") or 0)  # type: ignore
    monkeypatch.setitem(sys.modules, "greeting", module)
    point = EntryPoint("greet", "greeting:COMMAND", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"greet": point})
    assert run(capsys, "greet") == (0, "hello\n", "")
    assert "greet        Say hello" in run(capsys, "--help")[1]


@pytest.mark.parametrize("value", ["no_such_module:COMMAND", "sys:path"])
def test_a_broken_plugin_does_not_take_the_help_down(capsys, monkeypatch, value):
    point = EntryPoint("broken", value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"broken": point})
    assert run(capsys, "--help")[0] == 0
    code, _, err = run(capsys, "broken")
    assert code == 1
    assert value in err


def test_ctrl_c_ends_with_130_and_no_traceback(capsys, monkeypatch):
    def interrupted(name: str) -> Command:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "load", interrupted)
    assert run(capsys, "chat") == (130, "", "")


def test_a_command_error_carries_its_exit_code(capsys, monkeypatch):
    def fail(options: Namespace) -> int:
        raise CommandError("it rained", exit_code=5)

    monkeypatch.setattr(registry, "load", lambda name: Command("Fails", lambda parser: None, fail))
    assert run(capsys, "anything") == (5, "", "vllm: error: it rained\n")
