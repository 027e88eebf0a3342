"""The heaviest requests that one client can think of: a real server soon refuses them, and nobody beside notices."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.same_bits import same_bits
from tests.server.control_stream import ControlStream
from tests.server.demo_process import DemoProcess
from tests.server.hostile import HUGE, LEAK, places

MAX_GROWTH = 200 << 20
"""Of the server's resident memory: several times what one of these takes while it is looked at."""
SECONDS = 5.0
PROBE_SECONDS = 0.1
"""In which health is told beside these, half of the time: tests share their processor with others."""
BUSY_SECONDS = 1.0
"""Of processor time that the server may take for one of them: so long may it hold up the others."""

PARTS = {"median": 0.5, "90 %": 0.9, "longest": 0.9999}
MANY = 1_000_000
OF_THE_ENGINE: dict[str, dict[str, Any]] = {
    "n": {"n": MANY},
    "best_of": {"best_of": MANY, "n": MANY},
    "logprobs": {"logprobs": MANY},
    "prompt_logprobs": {"prompt_logprobs": MANY},
    "max_tokens": {"max_tokens": 2**31 - 1},
    "min_tokens": {"min_tokens": 2**31 - 1},
    "top_k": {"top_k": 2**31 - 1, "max_tokens": 1},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 2**31 - 1, "max_tokens": 1},
    "logit_bias": {"logit_bias": {str(token): 1e308 for token in range(100_000)}},
    "a bias for one token": {"logit_bias": {"9223372036854775807": -1e308}},
    "stop": {"stop": ["(a+)+$" * 1000] * 1000},
    "stop strings": {"stop": [f"{number}" for number in range(100_000)]},
    "stop_token_ids": {"stop_token_ids": list(range(100_000))},
    "bad_words": {"bad_words": ["a b c d e f"] * 100_000},
    "allowed_token_ids": {"allowed_token_ids": [1] * 100_000},
    "prompts": {"prompt": ["a"] * 100_000, "max_tokens": 1},
    "token ids": {"prompt": [1] * 100_000, "max_tokens": 1},
    "prompts of token ids": {"prompt": [[1]] * 100_000, "max_tokens": 1},
    "no token ids": {"prompt": [-1], "max_tokens": 1},
    "token ids that are none": {"prompt": [2**63 - 1], "max_tokens": 1},
    "temperature": {"temperature": 1e308, "max_tokens": 1},
    "penalties": {"repetition_penalty": 1e-300, "presence_penalty": -2, "frequency_penalty": 2, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    process = DemoProcess(tmp_path_factory.mktemp("heavy"), "--max-model-len", "256", **same_bits())
    yield process
    process.clean_up()


class Probe:
    """Asks for health all the time, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.seconds: list[float] = []
        self.statuses: set[int] = set()
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.wait(0.02):
                begun = time.perf_counter()
                self.statuses.add(client.get("/health").status_code)
                self.seconds.append(time.perf_counter() - begun)


def heavy_bodies(description: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Route, name and body: each huge value in each field of the first that takes it, for every route with a body."""
    for path, methods in description["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for media in content.values():
            found = dict(places(media["schema"], description))
            for field in ("prompt", "messages", "messages[].content", "input", "tokens", "stop", "model", "tools"):
                if field in found:
                    before, after = _around(found[field])
                    for name, value in HUGE.items():
                        yield path, f"{field} = {name}", before + value + after


def _around(template: Any) -> tuple[bytes, bytes]:
    before, _, after = json.dumps(template).partition('"\\ue000 the hostile value \\ue000"')
    return before.encode(), after.encode()


def test_nothing_heavy_is_noticed_beside_it(server: DemoProcess) -> None:
    process = psutil.Process(server.process.pid)
    answers: list[str] = []
    slowest = longest = 0.0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        bodies = list(heavy_bodies(client.get("/openapi.json").json()))
        chosen = bodies[:: max(1, len(bodies) // 40)]
        engine = [("/v1/completions", name, json.dumps({"prompt": "a", **body}).encode())
                  for name, body in OF_THE_ENGINE.items()]  # fmt: skip
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
        before = process.memory_info().rss
        most = 0
        with ControlStream(server.url) as control, Probe(server.url) as probe:
            for path, name, body in [*engine, *chosen]:
                begun, busy = time.perf_counter(), sum(process.cpu_times()[:2])
                response = client.post(path, content=body, headers={"content-type": "application/json"})
                seconds = time.perf_counter() - begun
                longest = max(longest, sum(process.cpu_times()[:2]) - busy)
                slowest = max(slowest, seconds)
                most = max(most, process.memory_info().rss - before)
                leak = LEAK.search(response.text)
                if response.status_code not in (200, 400, 404, 413) or leak or seconds > SECONDS:
                    answers.append(f"{path} {name}: {response.status_code} in {seconds:.2f} s {response.text[:300]}")
    probes = sorted(probe.seconds)
    print(
        f"{len(engine) + len(chosen)} requests, the slowest {slowest:.2f} s, "
        f"at most {longest:.2f} s of processor time, memory +{most >> 20} MiB; health in ms: "
        + ", ".join(f"{name} {probes[int(len(probes) * part)] * 1e3:.1f}" for name, part in PARTS.items())
    )
    assert answers == []
    assert most < MAX_GROWTH
    assert probe.statuses == {200}
    assert probes[len(probes) // 2] < PROBE_SECONDS
    assert longest < BUSY_SECONDS
    control.check()
    assert server.core.is_running()
    assert "Traceback" not in Path(server.log).read_text()
