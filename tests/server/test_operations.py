"""What operators see of a real server: health that tells the truth, and an end in good order."""

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.demo_process import DemoProcess, StreamReader, until


@pytest.fixture
def started() -> Iterator[list[DemoProcess]]:
    processes: list[DemoProcess] = []
    yield processes
    for process in processes:
        process.clean_up()


def test_health_follows_a_stopped_and_a_saturated_engine(started: list[DemoProcess], tmp_path: Path) -> None:
    started.append(demo := DemoProcess(tmp_path, "--max-num-seqs", "4"))
    assert [demo.status(path) for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    # Many more requests than it can run at once: it is ready all the time.
    readers = [StreamReader(demo.url, 400) for _ in range(12)]
    assert readers[0].begun.wait(20)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert demo.status("/readyz") == demo.status("/health") == 200
    # Stopped in the midst of its work.
    os.kill(demo.core.pid, signal.SIGSTOP)
    seconds = until(lambda: demo.status("/readyz") == 503, 5)
    assert seconds > 1
    assert httpx.get(f"{demo.url}/health").json()["error"]["code"] == "engine_stalled"
    assert demo.status("/livez") == 200
    until(lambda: "stacks of the engine process" in demo.log.read_text(), 3)
    os.kill(demo.core.pid, signal.SIGCONT)
    until(lambda: demo.status("/readyz") == demo.status("/health") == 200, 3)
    for reader in readers:
        reader.join(60)
        assert len(reader.lines) == 401 and reader.lines[-1] == "data: [DONE]"
    until(lambda: "the engine makes progress again" in demo.log.read_text(), 3)
    log = demo.log.read_text()
    assert log.count("the engine has made no progress") == log.count("the engine makes progress again") == 1
    assert "MainThread" in log and "T (stopped)" in log
    # Dead: within a moment not ready and not live, never again otherwise, and the server ends.
    demo.core.kill()
    killed = time.monotonic()
    with httpx.Client() as client:
        while demo.process.poll() is None:
            try:
                statuses = (client.get(f"{demo.url}/readyz").status_code, client.get(f"{demo.url}/livez").status_code)
            except httpx.HTTPError:
                break
            assert statuses in ((503, 503), (200, 503)) or (statuses == (200, 200) and time.monotonic() - killed < 0.5)
    assert demo.process.wait(10) == 1
    until(lambda: not demo.left_over(), 5)


def test_a_signal_drains_and_nothing_is_left(started: list[DemoProcess], tmp_path: Path) -> None:
    started.append(demo := DemoProcess(tmp_path, "--shutdown-timeout", "30"))
    readers = [StreamReader(demo.url, 400) for _ in range(6)]
    for reader in readers:
        assert reader.begun.wait(20)
    demo.process.send_signal(signal.SIGTERM)
    until(lambda: demo.status("/readyz") == 503, 1)
    answer = httpx.post(f"{demo.url}/v1/completions", json={"prompt": "Hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    for reader in readers:
        reader.join(30)
        assert len(reader.lines) == 401 and reader.lines[-1] == "data: [DONE]"
    assert demo.process.wait(5) == 0
    until(lambda: not demo.left_over(), 5)


def test_a_second_signal_ends_streams_with_an_error_even_when_the_engine_hears_nothing(
    started: list[DemoProcess], tmp_path: Path
) -> None:
    started.append(demo := DemoProcess(tmp_path, "--shutdown-timeout", "60"))
    readers = [StreamReader(demo.url, 1900) for _ in range(3)]
    for reader in readers:
        assert reader.begun.wait(20)
    os.kill(demo.core.pid, signal.SIGSTOP)
    demo.process.send_signal(signal.SIGTERM)
    until(lambda: demo.status("/readyz") == 503, 1)
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(5) == 0
    assert not demo.left_over()
    for reader in readers:
        reader.join(5)
        assert json.loads(reader.lines[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert not reader.broken


def test_a_flood_is_shed_in_milliseconds_and_takes_nothing_from_others(
    started: list[DemoProcess], tmp_path: Path
) -> None:
    flags = ["--max-num-seqs", "4", "--max-num-queued-reqs", "8", "--scheduling-policy", "fair"]
    started.append(demo := DemoProcess(tmp_path, *flags, "--api-key", "heavy", "light"))
    heavy, light = {"x-api-key": "heavy"}, {"x-api-key": "light"}
    readers = [StreamReader(demo.url, 1900, headers=heavy) for _ in range(12)]
    until(lambda: sum(reader.begun.is_set() for reader in readers) >= 4, 20)
    body = {"prompt": "Hello", "max_tokens": 1}
    with httpx.Client() as client:
        refused, taken = [], []
        for _ in range(10):  # fewer than the flood's first requests need to end, even on a busy machine
            answer = client.post(f"{demo.url}/v1/completions", json=body, headers=heavy)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            refused.append(answer.elapsed.total_seconds())
            answer = client.post(f"{demo.url}/v1/completions", json=body, headers=light, timeout=20)
            assert answer.status_code == 200
            taken.append(answer.elapsed.total_seconds())
        metrics = client.get(f"{demo.url}/metrics", headers=light).text
    # Medians, as this machine does other things, too. A place of the flood becomes free only after a second or so.
    assert statistics.median(refused) < 0.02
    assert statistics.median(taken) < 0.3
    assert not any(reader.lines and reader.lines[-1] == "data: [DONE]" for reader in readers[-4:])
    assert 'vllm:admission_rejections_total{model_name="demo",reason="max_num_queued_reqs"} 10.0' in metrics
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(5) == 0
    for reader in readers:
        reader.join(5)
