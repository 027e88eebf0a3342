"""The process ``vllm serve``: start, ready line, signals, exit codes. The engine is the scripted one."""

import argparse
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import fake_serve
from tests.server.fake_llm import sse_events
from tests.server.process import ROOT, Process, without_phases
from vllm_engine.config import EngineArgs
from vllm_engine.errors import ConfigError
from vllm_server.config import ServerConfig
from vllm_server.running.open_files import WANTED, allow_many_files
from vllm_server.serve import add_arguments, run, serve


class Stream(threading.Thread):
    """A client of a stream."""

    def __init__(self, url: str, max_tokens: int) -> None:
        super().__init__()
        self.url = url
        self.max_tokens = max_tokens
        self.text = ""
        self.begun = threading.Event()

    def run(self) -> None:
        body = {"prompt": "hi", "max_tokens": self.max_tokens, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=20) as response:
            for part in response.iter_text():
                self.text += part
                self.begun.set()

    def events(self) -> list[Any]:
        self.join(timeout=20)
        return [item if item == "[DONE]" else json.loads(item) for item in sse_events(self.text)]


def start_stream(url: str, max_tokens: int) -> Stream:
    stream = Stream(url, max_tokens)
    stream.start()
    assert stream.begun.wait(10)
    return stream


def test_a_server_starts_answers_and_ends_with_zero_on_sigterm(processes: list[Process]) -> None:
    processes.append(process := Process())
    assert process.wait_for("ready").startswith("ready after ")
    # The engine loads its model while the web framework is imported, not after.
    assert process.wait_for("engine launched") == "engine launched, multiprocess=True, imported=[]"
    curl = process.wait_for("try: curl ").removeprefix("try: ")
    if subprocess.run(["which", "curl"], capture_output=True, check=False).returncode == 0:
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True, timeout=20).stdout
        assert json.loads(answer)["object"] == "chat.completion"
    assert httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"] == "demo"
    assert "vllm:num_requests_running" in httpx.get(f"{process.url}/metrics").text
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert process.lines[-1] == "engine closed, running=0, aborted=0"
    assert any("/v1/models" in line for line in process.log)


def test_ctrl_c_ends_with_zero_and_flags_are_followed(processes: list[Process]) -> None:
    processes.append(
        process := Process(
            "--served-model-name",
            "short",
            "--disable-frontend-multiprocessing",
            "--disable-uvicorn-access-log",
            "--disable-log-stats",
        )
    )
    assert httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"] == "short"
    assert process.wait_for("engine launched") == "engine launched, multiprocess=False, imported=[]"
    metrics = httpx.get(f"{process.url}/metrics").text
    assert "vllm:" not in metrics
    assert "process_cpu_seconds_total" in metrics
    process.signal(signal.SIGINT)
    assert process.end() == 0
    assert not any("/v1/models" in line for line in process.log)


def test_by_default_sigterm_ends_streams_at_once_with_an_error_event(processes: list[Process]) -> None:
    processes.append(process := Process(delay=0.05))
    stream = start_stream(process.url, 400)
    process.signal(signal.SIGTERM)
    start = time.monotonic()
    assert process.end() == 0
    assert time.monotonic() - start < 10  # the stream would take twenty
    assert stream.events()[-1]["error"]["code"] == "shutting_down"
    assert process.lines[-1] == "engine closed, running=0, aborted=1"


def test_with_a_timeout_streams_finish_and_nothing_new_is_taken(processes: list[Process]) -> None:
    processes.append(process := Process("--shutdown-timeout", "10", delay=0.05))
    stream = start_stream(process.url, 30)
    process.signal(signal.SIGTERM)
    time.sleep(0.2)
    assert httpx.get(f"{process.url}/livez").status_code == 200
    refused = [httpx.get(f"{process.url}/readyz"), httpx.get(f"{process.url}/health")]
    refused.append(httpx.post(f"{process.url}/v1/completions", json={"prompt": "hi"}))
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
    assert process.end() == 0
    *chunks, done = stream.events()
    assert done == "[DONE]"
    assert len(chunks) == 30
    assert process.lines[-1] == "engine closed, running=0, aborted=0"


def test_when_the_timeout_is_over_streams_are_ended(processes: list[Process]) -> None:
    processes.append(process := Process("--shutdown-timeout", "1", delay=0.05))
    stream = start_stream(process.url, 400)
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert stream.events()[-1]["error"]["code"] == "shutting_down"


def test_a_second_signal_does_not_wait(processes: list[Process]) -> None:
    processes.append(process := Process("--shutdown-timeout", "60", delay=0.05))
    stream = start_stream(process.url, 400)
    process.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.process.poll() is None
    process.signal(signal.SIGTERM)
    start = time.monotonic()
    assert process.end() == 0
    assert time.monotonic() - start < 10  # the stream would take twenty
    assert stream.events()[-1]["error"]["code"] == "shutting_down"


def test_it_serves_on_when_nobody_takes_its_standard_output(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.fake_serve", "demo", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env={**os.environ, "FAKE": '{"start_delay": 0.5}', "VLLM_LOGGING_LEVEL": "INFO"},
        )
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("engine launched")
        process.stdout.close()
        deadline = time.monotonic() + 20
        while not (told := re.search(r"standard output takes nothing .* at (http\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        assert httpx.get(f"{told[1]}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_as_many_files_may_be_open_as_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, WANTED) if hard > 0 else WANTED, hard)
        allow_many_files()  # has no more to do
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_signal_while_the_model_loads_ends_the_process(processes: list[Process]) -> None:
    processes.append(process := Process(start_delay=60))
    process.wait_for("engine launched")
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert process.lines[-1].startswith("engine closed")


def test_a_dead_engine_ends_the_server_with_one(processes: list[Process]) -> None:
    processes.append(process := Process(dies_after=0.2))
    process.wait_for("ready")
    assert process.end() == 1
    assert any("engine has died" in line for line in process.log)


def test_a_server_can_outlive_its_engine(processes: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")
    processes.append(process := Process(dies_after=0.0))
    url = process.url
    deadline = time.monotonic() + 10
    while not any("engine has died" in line for line in process.log):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert httpx.get(f"{url}/livez").status_code == 200
    for answer in (httpx.get(f"{url}/health"), httpx.get(f"{url}/readyz")):
        assert answer.status_code == 503
    process.signal(signal.SIGTERM)
    assert process.end() == 1


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("flags", "script", "code", "message"),
    [
        ([], {"fails": "config"}, 2, "--max-model-len: too long for the cache"),
        ([], {"fails": "dead"}, 1, "the engine process ended with code 1"),
        (["--max-num-seqs", "0"], {}, 2, "--max-num-seqs"),
        (["--port", "70000"], {}, 2, "--port"),
        (["--host", "256.0.0.1"], {}, 2, "--host"),
        (["--model", "other"], {}, 2, "two models are named"),
        (["--chat-template", "no/such/file"], {}, 2, "--chat-template"),
        (["--chat-template", "{% if %}"], {}, 2, "--chat-template"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    flags: list[str],
    script: dict[str, Any],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_engine.async_llm", fake_serve.module())
    monkeypatch.setattr(fake_serve, "SCRIPT", script)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["demo", "--port", "0", *flags])) == code
    (line,) = without_phases(capsys.readouterr().err)
    assert line.startswith("vllm serve: error: ")
    assert message in line


def test_a_port_in_use_is_told_before_the_engine_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        ) as error:
            serve(EngineArgs("demo").create_config(), ServerConfig(port=port))
    assert error.value.field == "port"
