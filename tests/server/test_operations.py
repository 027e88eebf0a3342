"""What operators see of a real server: health that tells the truth, and an end in good order."""

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.server.demo_process import DemoProcess, StreamReader, until

HEAVY, LIGHT = {"x-api-key": "heavy"}, {"x-api-key": "light"}
WITH_USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    """Runs four requests, and lets eight wait. Two tests use it: the second one ends it."""
    flags = ["--max-num-seqs", "4", "--max-num-queued-reqs", "8", "--scheduling-policy", "fair"]
    demo = DemoProcess(tmp_path_factory.mktemp("busy"), *flags, "--api-key", "heavy", "light")
    demo.headers = LIGHT
    yield demo
    demo.clean_up()


@pytest.fixture(scope="module")
def to_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[DemoProcess]]]:
    """Two servers that have time for what runs when they are told to stop. They start while another test waits."""
    with ThreadPoolExecutor() as pool:
        flags = ["--shutdown-timeout", "60"]
        demos = [pool.submit(DemoProcess, tmp_path_factory.mktemp(name), *flags) for name in ("first", "second")]
        yield demos.copy()
    for demo in demos:
        demo.result().clean_up()


def is_whole(reader: StreamReader) -> bool:
    """Whether a stream brought all its 400 tokens. A client that is late may get several in a chunk."""
    usage = json.loads(reader.lines[-2].removeprefix("data: "))["usage"]
    return bool(usage["completion_tokens"] == 400 and reader.lines[-1] == "data: [DONE]")


def test_a_flood_is_shed_in_milliseconds_and_takes_nothing_from_others(busy: DemoProcess) -> None:
    demo = busy
    readers = [StreamReader(demo.url, 1900, headers=HEAVY) for _ in range(12)]
    try:
        with httpx.Client(timeout=20) as client:

            def metrics() -> str:
                return client.get(f"{demo.url}/metrics", headers=LIGHT).text

            until(lambda: sum(reader.begun.is_set() for reader in readers) >= 4, 20)
            until(lambda: 'vllm:num_requests_waiting{model_name="demo",engine="0"} 8.0' in metrics(), 20)
            body = {"prompt": "Hello", "max_tokens": 1}
            refused, taken = [], []
            for _ in range(10):  # fewer than the flood's first requests need to end, even on a busy machine
                answer = client.post(f"{demo.url}/v1/completions", json=body, headers=HEAVY)
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                refused.append(answer.elapsed.total_seconds())
                answer = client.post(f"{demo.url}/v1/completions", json=body, headers=LIGHT)
                assert answer.status_code == 200
                taken.append(answer.elapsed.total_seconds())
            rejections = 'vllm:admission_rejections_total{model_name="demo",reason="max_num_queued_reqs"} 10.0'
            assert rejections in metrics()
        # Medians, as this machine does other things, too. A place of the flood becomes free only after a second or so.
        assert statistics.median(refused) < 0.02
        assert statistics.median(taken) < 0.3
        assert not any(reader.lines and reader.lines[-1] == "data: [DONE]" for reader in readers[-4:])
    finally:
        for reader in readers:
            reader.close()
        for reader in readers:
            reader.join(20)


def test_health_follows_a_stopped_and_a_saturated_engine(busy: DemoProcess, to_end: list[Future[DemoProcess]]) -> None:
    demo = busy
    assert [demo.status(path) for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    # Many more requests than it can run at once: it is ready all the time.
    readers = [StreamReader(demo.url, 400, headers=HEAVY, stream_options=WITH_USAGE) for _ in range(12)]
    assert readers[0].begun.wait(20)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert demo.status("/readyz") == demo.status("/health") == 200
    # Stopped in the midst of its work.
    os.kill(demo.core.pid, signal.SIGSTOP)
    seconds = until(lambda: demo.status("/readyz") == 503, 5)
    assert seconds > 1
    assert httpx.get(f"{demo.url}/health", headers=LIGHT).json()["error"]["code"] == "engine_stalled"
    assert demo.status("/livez") == 200
    until(lambda: "stacks of the engine process" in demo.log.read_text(), 10)
    os.kill(demo.core.pid, signal.SIGCONT)
    until(lambda: demo.status("/readyz") == demo.status("/health") == 200, 10)
    for reader in readers:
        reader.join(60)
        assert is_whole(reader)
    until(lambda: "the engine makes progress again" in demo.log.read_text(), 10)
    log = demo.log.read_text()
    assert log.count("the engine has made no progress") == log.count("the engine makes progress again") == 1
    assert "MainThread" in log and "T (stopped)" in log
    # Dead: within a moment not ready and not live, never again otherwise, and the server ends.
    demo.core.kill()
    killed = time.monotonic()
    with httpx.Client(headers=LIGHT) as client:
        while demo.process.poll() is None:
            try:
                statuses = (client.get(f"{demo.url}/readyz").status_code, client.get(f"{demo.url}/livez").status_code)
            except httpx.HTTPError:
                break
            assert statuses in ((503, 503), (200, 503)) or (statuses == (200, 200) and time.monotonic() - killed < 2)
    assert demo.process.wait(10) == 1
    until(lambda: not demo.left_over(), 5)


def test_a_signal_drains_and_nothing_is_left(to_end: list[Future[DemoProcess]]) -> None:
    demo = to_end.pop().result()
    readers = [StreamReader(demo.url, 400, stream_options=WITH_USAGE) for _ in range(6)]
    for reader in readers:
        assert reader.begun.wait(20)
    demo.process.send_signal(signal.SIGTERM)
    until(lambda: demo.status("/readyz") == 503, 5)
    answer = httpx.post(f"{demo.url}/v1/completions", json={"prompt": "Hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    for reader in readers:
        reader.join(30)
        assert is_whole(reader)
    assert demo.process.wait(5) == 0
    until(lambda: not demo.left_over(), 5)


def test_a_second_signal_ends_streams_with_an_error_even_when_the_engine_hears_nothing(
    to_end: list[Future[DemoProcess]],
) -> None:
    demo = to_end.pop().result()
    readers = [StreamReader(demo.url, 1900) for _ in range(3)]
    for reader in readers:
        assert reader.begun.wait(20)
    os.kill(demo.core.pid, signal.SIGSTOP)
    demo.process.send_signal(signal.SIGTERM)
    until(lambda: demo.status("/readyz") == 503, 5)
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(5) == 0
    assert not demo.left_over()
    for reader in readers:
        reader.join(5)
        assert json.loads(reader.lines[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert not reader.broken
