import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.cli import mock_openai
from vllm_bench import server_process
from vllm_bench.commands import startup as startup_command
from vllm_bench.server_process import ServerProcess, free_port
from vllm_bench.startup import StartupTiming, measure_start, startup_figures, startup_lines
from vllm_cli.command import CommandError
from vllm_cli.main import main

ROOT = Path(__file__).parents[2]
MOCK = [sys.executable, mock_openai.__file__]


def mock_command(*options: str):
    return lambda port: [*MOCK, "--port", str(port), *options]


def test_a_start_is_timed_to_health_and_to_the_first_token():
    timing = measure_start(mock_command("--load-seconds", "0.3"), free_port(), timeout=30)
    assert 0.3 <= timing.healthy_seconds < timing.first_token_seconds < 15
    assert timing.phases == {"weights": 0.3}


def test_the_server_is_gone_after_the_measurement():
    port = free_port()
    measure_start(mock_command(), port, timeout=30)
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if mock_openai.__file__ in command and str(port) in command]


def test_a_server_that_ends_early_is_told_with_its_last_words():
    with pytest.raises(CommandError, match=r"code 3(.|\n)*no such model"):
        measure_start(mock_command("--exit-code", "3"), free_port(), timeout=30)


def test_a_server_that_is_never_ready_is_given_up():
    with pytest.raises(CommandError, match="in time"):
        measure_start(mock_command("--load-seconds", "60"), free_port(), timeout=0.5)


def test_a_whole_process_group_is_ended_even_when_it_ignores_sigterm(monkeypatch):
    monkeypatch.setattr(server_process, "_TERM_SECONDS", 0.3)
    deaf = "trap '' TERM; sleep 60 & echo $!; wait"
    with ServerProcess(["sh", "-c", deaf]) as server:
        deadline = time.monotonic() + 10
        while not server.log().strip() and time.monotonic() < deadline:
            time.sleep(0.01)
        child = int(server.log())
        assert psutil.pid_exists(child)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_to_the_benchmark_takes_the_server_along(tmp_path):
    """The server runs in a session of its own, so nobody else would end it."""
    pid_file = tmp_path / "pid"
    script = f"""
        import sys
        from vllm_cli.main import main
        # Stands in for `vllm serve`: says who it is and never becomes ready.
        stand_in = "import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        from vllm_bench import startup
        measure = startup.measure_start
        command = [sys.executable, "-c", stand_in]
        startup.measure_start = lambda _, port, timeout: measure(lambda _: command, port, timeout=timeout)
        main(["bench", "startup", "demo"])
    """
    benchmark = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server = psutil.Process(int(pid_file.read_text()))
    benchmark.send_signal(signal.SIGTERM)
    assert benchmark.wait(20) == 128 + signal.SIGTERM
    assert not server.is_running()


def test_figures_are_median_minimum_and_maximum_of_the_runs():
    runs = [StartupTiming(2.0, 2.5, {"weights": 1.0}), StartupTiming(1.0, 1.6, {"weights": 0.5, "warm-up": 0.1})]
    figures = startup_figures(runs)
    assert figures["healthy_seconds"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert figures["first_token_seconds"]["max"] == 2.5
    assert figures["phases"] == {
        "weights": {"median": 0.75, "min": 0.5, "max": 1.0},
        "warm-up": {"median": 0.1, "min": 0.1, "max": 0.1},
    }
    assert len(figures["runs"]) == 2
    lines = startup_lines(figures)
    assert lines[1].split() == ["ready", "(/health)", "1.500", "1.000", "2.000"]
    assert lines[-1].split() == ["warm-up", "0.100", "0.100", "0.100"]


def test_the_command_launches_vllm_serve_and_saves_its_figures(tmp_path, monkeypatch, capsys):
    seen = []

    def fake(command_for, port, *, timeout):
        seen.append((command_for(1234), timeout))
        return StartupTiming(1.0, 2.0, {"weights": 0.5})

    monkeypatch.setattr("vllm_bench.startup.measure_start", fake)
    saved = tmp_path / "startup.json"
    options = ["--num-iters", "2", "--timeout", "9", "--output-json", str(saved)]
    assert main(["bench", "startup", *options, "demo", "--max-model-len", "256"]) == 0
    command, timeout = seen[1]
    serve = ["serve", "demo", "--host", "127.0.0.1", "--port", "1234", "--max-model-len", "256"]
    assert command == [sys.executable, "-m", "vllm_cli", *serve]
    assert (len(seen), timeout) == (2, 9)
    content = json.loads(saved.read_text())
    assert content["serve_options"] == ["--max-model-len", "256"]
    assert content["healthy_seconds"]["median"] == 1.0
    assert "start 2: ready 1.00 s, first token 2.00 s" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is not startup_command._end


@pytest.mark.parametrize("option", ["--port=1", "--host", "--num-iters"])
def test_an_option_in_the_wrong_place_is_named(capsys, option):
    assert main(["bench", "startup", "demo", option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_a_free_port_can_be_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
