import argparse
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
from tests.cli.mock_openai import running_mock
from tests.server.certificates import OPENSSL, make_authority
from vllm_bench import server_process
from vllm_bench.commands import startup as startup_command
from vllm_bench.measure.start_phases import StartPhases
from vllm_bench.offline.serve_settings import ServeSettings, read_serve_settings
from vllm_bench.result.fingerprint import HIDDEN, engine_fingerprint
from vllm_bench.server_process import ServerProcess, free_port
from vllm_bench.startup import StartupTiming, measure_start, startup_figures, startup_lines
from vllm_bench.startup_probe import StartupProbe
from vllm_cli.command import CommandError
from vllm_cli.main import main
from vllm_engine.config.settings import settings_of
from vllm_server.config import CONFIGS

ROOT = Path(__file__).parents[2]
MOCK = [sys.executable, mock_openai.__file__]


def measure_mock(*options: str, port: int | None = None, timeout: float = 30) -> StartupTiming:
    port = port or free_port()
    return measure_start([*MOCK, "--port", str(port), *options], StartupProbe(port), timeout=timeout)


def test_a_start_is_timed_to_health_and_to_the_first_token():
    timing = measure_mock("--load-seconds", "0.3")
    assert 0.3 <= timing.healthy_seconds < timing.first_token_seconds < 15
    assert timing.phases.path["weights"] == 0.3
    assert sum(timing.phases.path.values()) == pytest.approx(timing.first_token_seconds)
    # Nobody said what the interpreter and its imports were.
    assert timing.phases.unnamed == timing.phases.path["before weights"] > 0


def test_the_server_is_gone_after_the_measurement():
    port = free_port()
    measure_mock(port=port)
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if mock_openai.__file__ in command and str(port) in command]


def test_a_server_that_ends_early_is_told_with_its_last_words():
    with pytest.raises(CommandError, match=r"code 3(.|\n)*no such model"):
        measure_mock("--exit-code", "3")


def test_a_server_that_is_never_ready_is_given_up():
    with pytest.raises(CommandError, match="in time"):
        measure_mock("--load-seconds", "60", timeout=0.5)


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
        startup.measure_start = lambda _, probe, timeout: measure(command, probe, timeout=timeout)
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
    runs = [
        StartupTiming(2.0, 2.5, StartPhases({"weights": 2.5}, {"tokenizer": 0.1}, 0.0)),
        StartupTiming(1.0, 1.6, StartPhases({"weights": 1.5, "before weights": 0.1}, {}, 0.1)),
    ]
    figures = startup_figures(runs)
    assert figures["healthy_seconds"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert figures["first_token_seconds"]["max"] == 2.5
    assert figures["phases"] == {
        "weights": {"median": 2.0, "min": 1.5, "max": 2.5},
        "before weights": {"median": 0.05, "min": 0.0, "max": 0.1},
    }
    assert figures["beside"]["tokenizer"]["median"] == 0.05
    assert figures["unnamed_seconds"]["max"] == 0.1
    assert len(figures["runs"]) == 2
    lines = startup_lines(figures)
    assert lines[1].split() == ["ready", "(/health)", "1.500", "1.000", "2.000"]
    assert lines[-3].split() == ["tokenizer", "0.050", "0.000", "0.100"]
    assert lines[-1] == "the medians of the phases add up to 2.050 s, 100.0% of the first token's"


def test_the_command_launches_vllm_serve_and_saves_its_figures(tmp_path, monkeypatch, capsys):
    seen = []

    def fake(command, probe, *, timeout):
        seen.append((command, timeout))
        return StartupTiming(1.0, 2.0, StartPhases({"weights": 2.0}, {}, 0.0))

    monkeypatch.setattr("vllm_bench.startup.measure_start", fake)
    saved = tmp_path / "startup.json"
    options = ["--num-iters", "2", "--timeout", "9", "--output-json", str(saved)]
    assert main(["bench", "startup", *options, "demo", "--max-model-len", "256"]) == 0
    command, timeout = seen[1]
    serve = ["serve", "demo", "--max-model-len", "256", "--host", "127.0.0.1", "--port"]
    assert command[:-1] == [sys.executable, "-m", "vllm_cli", *serve]
    assert (len(seen), timeout) == (2, 9)
    content = json.loads(saved.read_text())
    assert content["serve_options"] == ["--max-model-len", "256"]
    assert content["healthy_seconds"]["median"] == 1.0
    assert content["fingerprint"]["settings"] == {"model": "demo", "max_model_len": "256"}
    assert content["fingerprint"]["flags"]["num_iters"] == 2
    assert "start 2: ready 1.00 s, first token 2.00 s" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is not startup_command._end


def test_what_is_secret_is_not_saved(tmp_path, monkeypatch):
    timing = StartupTiming(1.0, 2.0, StartPhases({"weights": 2.0}, {}, 0.0))
    monkeypatch.setattr("vllm_bench.startup.measure_start", lambda *_, **__: timing)
    saved = tmp_path / "startup.json"
    secrets = ["--api-key", "k1", "k2-of-mine", "--hf-token=t3", "--admin-api-key", "a4"]
    assert main(["bench", "startup", "--num-iters", "1", "--output-json", str(saved), "demo", *secrets]) == 0
    content = json.loads(saved.read_text())
    assert content["serve_options"] == ["--api-key", "***", "***", "--hf-token=***", "--admin-api-key", "***"]
    assert not [word for word in ("k1", "k2-of-mine", "t3", "a4") if f'"{word}"' in saved.read_text()]


def test_every_secret_setting_is_known_to_the_fingerprint():
    settings = {name: each for config in CONFIGS for name, each in settings_of(config).items()}
    secret = {name: "x" for name, each in settings.items() if each.facts.get("secret")}
    assert {"api_key", "hf_token"} <= set(secret)
    shown = engine_fingerprint(argparse.Namespace(), secret, 0)["settings"]
    assert set(shown.values()) == {HIDDEN}


def test_the_probe_brings_the_servers_own_key(tmp_path, monkeypatch):
    settings = tmp_path / "serve.yaml"
    settings.write_text("api-key: [from-file]\nskip-tokenizer-init: true\n")
    assert read_serve_settings(["demo", "--api-key", "a", "b"]).api_key == "a"
    assert read_serve_settings(["demo", "--config", str(settings)]) == ServeSettings(False, "from-file", False)
    assert read_serve_settings(["demo", "--ssl-certfile", "c.pem"]).tls
    monkeypatch.setenv("VLLM_API_KEY", "of-the-environment")
    with running_mock() as server:
        probe = StartupProbe(server.server_port, api_key=None)
        assert probe.is_healthy()
        probe.wait_for_token()
        StartupProbe(server.server_port, api_key="a").wait_for_token()
        keys = [headers["Authorization"] for headers in server.headers_seen]
        server.refuse_with = (401, b"no key")
        with pytest.raises(CommandError, match="401 to its first request: no key"):
            probe.wait_for_token()
    assert keys == ["Bearer of-the-environment", "Bearer a"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port=1"], "--port: the benchmark chooses"),
        (["--host", "::1"], "--host: the benchmark chooses"),
        (["--num-iters", "2"], "--num-iters belongs before MODEL"),
        (["--ssl-cert-reqs", "2"], "no client certificate"),
    ],
)
def test_an_option_that_cannot_be_is_named(capsys, options, said):
    assert main(["bench", "startup", "demo", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(OPENSSL is None, reason="certificates are made with openssl")
def test_the_phases_of_the_demo_behind_tls_and_a_key_add_up_to_the_wall_time(tmp_path, monkeypatch):
    """Those that the log names, and the launches of the two processes, are 95 % of the time to the first token.

    In the best of three starts: on a busy machine a line of the log is read so late that its phase seems to end within
    the next one, and is told beside the path.
    """
    wanted = ("python and imports", "config", "engine process", "worker", "weights", "warm-up", "listening")
    monkeypatch.setenv("VLLM_API_KEY", "key")
    pair = make_authority(tmp_path, "server")
    saved = tmp_path / "startup.json"
    command = ["bench", "startup", "--num-iters", "1", "--output-json", str(saved), "demo"]
    for _ in range(3):
        assert main([*command, "--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)]) == 0
        (run,) = json.loads(saved.read_text())["runs"]
        if set(wanted) <= run["phases"]["path"].keys():
            break
    path, wall = run["phases"]["path"], run["first_token_seconds"]
    named = sum(seconds for name, seconds in path.items() if not name.startswith("before "))
    assert named == pytest.approx(wall, rel=0.05)
    assert sum(path.values()) == pytest.approx(wall)
    for name in wanted:
        assert path[name] >= 0
    assert run["phases"]["beside"].keys() == {"tokenizer", "web framework"}


def test_a_free_port_can_be_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
