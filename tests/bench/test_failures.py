"""Runs that do not come to their end: a server that dies, refuses or is not there, and a user who has seen enough."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.mock_server import MockServer, Plan, running
from vllm_bench import server_facts
from vllm_bench.load import stopping
from vllm_cli.main import main

ROOT = Path(__file__).parents[2]
SHORT = ["--input-len", "4", "--output-len", "5"]


def arguments(url: str, folder: Path, *more: str) -> list[str]:
    return ["bench", "serve", "--base-url", url, *SHORT, "--result-filename", str(folder / "r.json"), *more]


def saved(folder: Path) -> dict:
    return json.loads((folder / "r.json").read_text())


def mock_process(port: int, plan: str = "{}") -> subprocess.Popen[str]:
    """A mock server that a test may kill."""
    command = [sys.executable, str(ROOT / "tests/bench/mock_server.py"), "--plans", f"[{plan}]", "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def when(condition: Callable[[], bool], what: Callable[[], object]) -> threading.Thread:
    """Does ``what`` as soon as ``condition`` holds, in a thread."""

    def act() -> None:
        wait_for(condition)
        what()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_server_that_dies_ends_the_run_with_what_there_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stopping, "GONE_SECONDS", 0.4)
    port = free_port()
    process = mock_process(port, '{"first_token_s": 0.02}')
    server = MockServer(f"http://127.0.0.1:{port}")
    killing = when(lambda: len(server.log()) > 10, process.kill)
    try:
        began = time.monotonic()
        options = ["--request-rate", "20", "--num-prompts", "400"]  # twenty seconds, and soon made
        assert main(arguments(f"http://127.0.0.1:{port}", tmp_path, *options)) == 1
        assert time.monotonic() - began < 10
    finally:
        killing.join()
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    result = saved(tmp_path)
    assert result["partial"] is True
    assert "the server is gone: no connection" in result["partial_reason"]
    assert result["completed"] > 5
    assert result["mean_ttft_ms"] > 0
    assert result["duration"] < 5
    out = capsys.readouterr().out
    assert "PARTIAL: the server is gone" in out
    assert "x no connection" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_reported_and_saved(tmp_path, number, code):
    with running([Plan(0.02, 0.002), Plan(0.02, 0.002), Plan(0.02, 20)]) as server:
        command = [sys.executable, "-m", "vllm_cli"]
        options = ["--max-concurrency", "3", "--num-prompts", "3000"]
        process = subprocess.Popen(
            [*command, *arguments(server.url, tmp_path, *options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: len(server.log()) >= 5)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code
    result = saved(tmp_path)
    assert result["partial"] is True
    assert result["interrupted_by"] == number.name
    assert result["completed"] >= 1
    assert result["failed"] == 0
    assert result["unfinished"] == 3
    assert f"PARTIAL: interrupted by {number.name}; 3 requests under way" in out
    assert "Traceback" not in err


def test_an_interrupted_warm_up_measures_nothing(tmp_path):
    with running([Plan(60)]) as server:
        killing = when(lambda: len(server.log()) == 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as end:
            main(arguments(server.url, tmp_path, "--num-prompts", "1", "--num-warmups", "1"))
        killing.join()
    assert end.value.code == 143
    assert not (tmp_path / "r.json").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_errors_in_the_middle_leave_a_partial_result(tmp_path):
    with running([*[Plan()] * 4, Plan(status=503), Plan(status=400)]) as server:
        code = main(arguments(server.url, tmp_path, "--num-prompts", "12", "--max-concurrency", "1"))
        assert len(server.log()) == 12
    result = saved(tmp_path)
    assert (code, result["completed"], result["failed"]) == (1, 8, 4)
    assert result["partial_reason"] == "4 of 12 requests failed"


@pytest.mark.parametrize(("status", "most"), [(404, 2), (401, 2), (400, 6)])
def test_a_server_that_refuses_everything_is_one_line(tmp_path, capsys, status, most):
    """Such as for a model that it has not."""
    with running([Plan(status=status)]) as server:
        code = main(arguments(server.url, tmp_path, "--num-prompts", "500", "--max-concurrency", "1"))
        assert len(server.log()) <= most
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("\n") == 1
    assert f"refuses the requests: status {status}: refused with {status}" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "r.json").exists()


def test_too_many_requests_are_no_refusal_for_good(tmp_path):
    with running([*[Plan(status=429)] * 8, Plan()]) as server:
        assert main(arguments(server.url, tmp_path, "--num-prompts", "9", "--max-concurrency", "3")) == 1
    assert saved(tmp_path)["completed"] == 1


def test_warm_ups_that_all_fail_are_one_line(tmp_path, capsys):
    with running([Plan(status=500)]) as server:
        assert main(arguments(server.url, tmp_path, "--num-warmups", "2", "--num-prompts", "1")) == 1
    assert re.search("no warm-up request was completed: status 500", capsys.readouterr().err)


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path, monkeypatch):
    port = free_port()
    started: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(server_facts, "_POLL_SECONDS", 0.05)
    timer = threading.Timer(0.3, lambda: started.append(mock_process(port)))
    timer.start()
    try:
        options = ["--num-prompts", "1", "--ready-check-timeout-sec", "15"]
        assert main(arguments(f"http://127.0.0.1:{port}", tmp_path, *options)) == 0
    finally:
        timer.join()
        started[0].kill()
        started[0].wait()
        started[0].stdin.close()
        started[0].stdout.close()


def test_a_server_that_never_comes_is_one_line(tmp_path, capsys):
    began = time.monotonic()
    options = ["--ready-check-timeout-sec", "0.6"]
    assert main(arguments(f"http://127.0.0.1:{free_port()}", tmp_path, *options)) == 1
    assert 0.6 <= time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--base-url" in error
