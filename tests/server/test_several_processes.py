"""``--api-server-count``: several processes serve one port and one engine, and it looks like one."""

import asyncio
import json
import os
import re
import signal
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.same_bits import same_bits, same_bits_here
from tests.server.certificates import OPENSSL, make_authority, make_certificate
from tests.server.demo_process import DemoProcess, StreamReader, until
from vllm_engine import LLM, SamplingParams
from vllm_engine.errors import ConfigError
from vllm_server.config import create_server_config
from vllm_server.siblings import Siblings

LIMITS = ("--max-num-seqs", "4", "--max-num-queued-reqs", "4", "--max-concurrency-per-key", "5")
KEYS = ("one", "two")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    flags = ("--api-server-count", "2", *LIMITS, "--enable-server-load-tracking", "--api-key", *KEYS)
    demo = DemoProcess(tmp_path_factory.mktemp("several"), *flags, **same_bits())
    yield demo
    demo.clean_up()


@pytest.fixture
def started() -> Iterator[list[DemoProcess]]:
    processes: list[DemoProcess] = []
    yield processes
    for process in processes:
        process.clean_up()


def key(name: str) -> dict[str, str]:
    return {"x-api-key": name}


def ask(demo: DemoProcess, path: str, name: str = "one", **fields: Any) -> httpx.Response:
    """One request over a connection of its own, which may go to any process."""
    if fields:
        return httpx.post(f"{demo.url}{path}", json=fields, headers=key(name), timeout=20)
    return httpx.get(f"{demo.url}{path}", headers=key(name), timeout=20)


def metric(page: str, name: str) -> float:
    """Sum of the series of a metric, which has ``_total`` and the like in its name."""
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE)
    assert found, name
    return sum(map(float, found))


def test_answers_and_sums_are_those_of_one_process(demo: DemoProcess) -> None:
    before = ask(demo, "/metrics").text
    prompts = ["Hello", "The weather is"]
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=6 + seed) for seed in range(12)]
    options: dict[str, Any] = {"max_num_seqs": 4, "num_gpu_blocks_override": 512, "use_tqdm_on_load": False}
    with same_bits_here(), LLM("demo", **options) as llm:
        true = {
            (prompt, one.seed): llm.generate(prompt, one, use_tqdm=False)[0].outputs[0]
            for prompt in prompts
            for one in params
        }

    def completion(case: tuple[str, int]) -> dict[str, Any]:
        prompt, seed = case
        answer = ask(
            demo, "/v1/completions", prompt=prompt, seed=seed, temperature=1, max_tokens=6 + seed
        ).raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(true, pool.map(completion, true), strict=True))
    assert {case: answer["choices"][0]["text"] for case, answer in answers.items()} == {
        case: output.text for case, output in true.items()
    }
    # Whoever is asked tells the sums of all, exactly.
    usages = [answer["usage"] for answer in answers.values()]
    names = {
        "vllm:request_success_total": len(true),
        "vllm:prompt_tokens_total": sum(usage["prompt_tokens"] for usage in usages),
        "vllm:generation_tokens_total": sum(usage["completion_tokens"] for usage in usages),
        "vllm:e2e_request_latency_seconds_count": len(true),
        "vllm:num_requests_running": 0,
    }
    pages = [ask(demo, "/metrics").text for _ in range(8)]
    for page in pages:
        assert {name: metric(page, name) - metric(before, name) for name in names} == names
    # And all have done their share: the system chooses by the client's port.
    log = demo.log.read_text()
    served = [log.count(f"[api {index}] INFO") and len(re.findall(rf"\[api {index}\].*POST", log)) for index in (0, 1)]
    assert sum(served) >= len(true) and min(served) >= 2


def test_limits_hold_for_all_processes_together(demo: DemoProcess) -> None:
    readers = [StreamReader(demo.url, 1900, headers=key("one")) for _ in range(5)]
    try:
        until(lambda: ask(demo, "/load", "two").json() == {"server_load": 5}, 10)
        for _ in range(6):
            answer = ask(demo, "/v1/completions", prompt="Hello", max_tokens=1)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        readers += [StreamReader(demo.url, 1900, headers=key("two")) for _ in range(3)]
        until(lambda: ask(demo, "/load", "two").json() == {"server_load": 8}, 10)
        for _ in range(6):
            answer = ask(demo, "/v1/completions", "two", prompt="Hello", max_tokens=1)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        rejected = metric(ask(demo, "/metrics").text, "vllm:admission_rejections_total")
        assert rejected == 6
    finally:
        for reader in readers:
            reader.close()
        for reader in readers:
            reader.join(20)
    until(lambda: ask(demo, "/load").json() == {"server_load": 0}, 5)
    until(lambda: metric(ask(demo, "/metrics").text, "vllm:num_requests_running") == 0, 5)
    assert ask(demo, "/v1/completions", prompt="Hello", max_tokens=1).status_code == 200


def test_a_response_is_found_whichever_process_is_asked(demo: DemoProcess) -> None:
    first = ask(demo, "/v1/responses", input="My name is Ada.", max_output_tokens=4).raise_for_status().json()
    for _ in range(8):
        assert ask(demo, f"/v1/responses/{first['id']}").json() == first
        assert ask(demo, f"/v1/responses/{first['id']}", "two").status_code == 404
        assert httpx.get(f"{demo.url}/v1/responses/{first['id']}").status_code == 401
        answer = ask(demo, "/v1/responses", input="Hi", previous_response_id=first["id"], max_output_tokens=4)
        second = answer.raise_for_status().json()
        items = ask(demo, f"/v1/responses/{second['id']}/input_items").json()["data"]
        assert len(items) == 3 and second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        other = ask(demo, "/v1/responses", "two", input="Hi", previous_response_id=first["id"])
        assert other.status_code == 404
    # One that runs is followed and ended from anywhere, and a follower that leaves ends nothing.
    fields = {"input": "Go on.", "max_output_tokens": 1500, "background": True, "stream": True}
    with httpx.stream("POST", f"{demo.url}/v1/responses", json=fields, headers=key("one"), timeout=20) as stream:
        events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        name = next(events)["response"]["id"]
    for _ in range(6):
        with httpx.stream(
            "GET", f"{demo.url}/v1/responses/{name}?stream=true", headers=key("one"), timeout=20
        ) as again:
            numbers = [json.loads(line[6:])["sequence_number"] for line in islice_data(again, 5)]
        assert numbers == [0, 1, 2, 3, 4]
    cancelled = httpx.post(f"{demo.url}/v1/responses/{name}/cancel", headers=key("one"), timeout=20).json()
    assert cancelled["status"] in ("cancelled", "incomplete", "completed")
    for _ in range(6):
        assert ask(demo, f"/v1/responses/{name}").json() == cancelled


def islice_data(response: httpx.Response, count: int) -> Iterator[str]:
    return islice((line for line in response.iter_lines() if line.startswith("data: ")), count)


def test_every_process_says_so_when_the_engine_makes_no_progress(demo: DemoProcess) -> None:
    def statuses(path: str) -> set[int]:
        return {ask(demo, path).status_code for _ in range(8)}  # so many connections reach both

    assert statuses("/readyz") == {200}
    os.kill(demo.core.pid, signal.SIGSTOP)
    try:
        until(lambda: statuses("/readyz") == {503}, 5)
        assert statuses("/health") == {503} and statuses("/livez") == {200}
    finally:
        os.kill(demo.core.pid, signal.SIGCONT)
    until(lambda: statuses("/readyz") == statuses("/health") == {200}, 5)


@pytest.mark.skipif(OPENSSL is None, reason="certificates are made with the openssl program")
def test_every_process_speaks_tls(started: list[DemoProcess], tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    pair = make_certificate(tmp_path, "server", authority)
    tls = ("--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key))
    started.append(demo := DemoProcess(tmp_path, "--api-server-count", "2", *tls))
    assert demo.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    connections = dict.fromkeys(demo.api_processes, 0)
    for _ in range(12):
        with httpx.Client(base_url=demo.url, verify=context) as client:
            answer = client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2}, timeout=20)
            assert answer.json()["usage"]["completion_tokens"] == 2
            for process in connections:
                connections[process] += any(one.status == "ESTABLISHED" for one in process.net_connections("tcp"))
    assert all(connections.values()), "each process had some of them"


def test_the_end_of_the_engine_is_that_of_all(demo: DemoProcess) -> None:
    readers = [StreamReader(demo.url, 1900, headers=key(name)) for name in KEYS for _ in range(2)]
    for reader in readers:
        assert reader.begun.wait(20)
    demo.core.kill()
    assert demo.process.wait(10) == 1
    until(lambda: not demo.left_over(), 5)
    for reader in readers:
        reader.join(5)
        assert '"engine_dead"' in reader.lines[-1] and not reader.broken


def api_processes(demo: DemoProcess) -> list[psutil.Process]:
    """Those that run now; the test's end looks after them, too."""
    children = psutil.Process(demo.process.pid).children()
    found = [child for child in children if "vllm_server.running.api_process" in child.cmdline()]
    demo.api_processes += [child for child in found if child not in demo.api_processes]
    return found


COUNTS = re.compile(r"^((?:vllm|http)\S+_(?:total|count|bucket|sum)(?:{.*})?) (\S+)$", re.MULTILINE)


def counts(demo: DemoProcess) -> dict[str, float]:
    """All that must never fall."""
    page = httpx.get(f"{demo.url}/metrics", timeout=20).text
    return {name: float(value) for name, value in COUNTS.findall(page)}


def test_a_killed_or_stopped_process_costs_its_own_requests_only_and_a_signal_drains_all(
    started: list[DemoProcess], tmp_path: Path
) -> None:
    flags = ("--api-server-count", "2", "--max-num-seqs", "16", "--shutdown-timeout", "30")
    prelude = "import vllm_server.running.api_child as child; child.HANG_SECONDS = 3.0"
    started.append(demo := DemoProcess(tmp_path, *flags, prelude=prelude))
    for _ in range(8):
        body = {"prompt": "Hello", "max_tokens": 3}
        assert httpx.post(f"{demo.url}/v1/completions", json=body, timeout=20).status_code == 200
    pages = [counts(demo)]
    readers = [StreamReader(demo.url, 700) for _ in range(12)]
    for reader in readers:
        assert reader.begun.wait(20)
    victim = demo.api_processes[0]
    victim.kill()
    until(lambda: sum(reader.broken for reader in readers) > 0, 5)
    time.sleep(0.2)  # and with it all of its connections
    rest = [reader for reader in readers if not reader.broken]
    # The engine drops what nobody waits for any more; the others end as they would have.
    url = f"{demo.url}/metrics"
    until(lambda: metric(httpx.get(url, timeout=20).text, "vllm:num_requests_running") <= len(rest), 5)
    # What it has counted, the others go on to tell, and then the one in its place.
    while "API process 0 is there again" not in demo.log.read_text():
        pages.append(counts(demo))
    pages += [counts(demo) for _ in range(4)]
    fresh = api_processes(demo)
    assert len(fresh) == 2 and victim not in fresh
    # One that hangs would keep its part of the connections: another one gets them, those that wait already, too.
    stopped = fresh[0] if fresh[0] != demo.api_processes[1] else fresh[1]
    stopped.suspend()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{demo.url}/version", timeout=20).status_code, range(16)))
    assert answers == [200] * 16 and stopped not in api_processes(demo)
    pages += [counts(demo) for _ in range(4)]
    for before, after in pairwise(pages):
        assert [name for name, value in before.items() if after[name] < value] == []
    rest = [reader for reader in rest if not reader.broken]
    readers = [StreamReader(demo.url, 600) for _ in range(4)]
    for reader in readers:
        assert reader.begun.wait(20)
    demo.process.send_signal(signal.SIGTERM)
    answers = []
    while any(reader.is_alive() for reader in readers) and len(answers) < 8:
        answers.append(httpx.post(f"{demo.url}/v1/completions", json={"prompt": "Hello"}).status_code)
    assert set(answers) <= {200, 503} and answers[-1] == 503
    for reader in [*rest, *readers]:
        reader.join(30)
        assert reader.lines[-1] == "data: [DONE]"
    assert demo.process.wait(5) == 0
    until(lambda: not demo.left_over(), 5)


def test_when_the_launching_process_is_killed_the_others_end(started: list[DemoProcess], tmp_path: Path) -> None:
    socket = Path(os.environ.get("TMPDIR", "/tmp"), f"asc-{os.getpid()}.sock")
    started.append(demo := DemoProcess(tmp_path, "--api-server-count", "2", "--uds", str(socket)))
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport) as client:
        assert client.get("http://localhost/readyz").status_code == 200
    demo.process.kill()
    until(lambda: not demo.left_over(), 5)
    socket.unlink()


def test_it_takes_an_engine_of_its_own_process() -> None:
    with pytest.raises(ConfigError) as caught:
        create_server_config({"api_server_count": 2, "disable_frontend_multiprocessing": True})
    assert caught.value.field == "api_server_count"


async def test_a_sibling_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    siblings = [Siblings(str(tmp_path), number, 3) for number in range(3)]
    answers = [{"load": lambda _, number=number: b"%d" % number} for number in range(3)]
    try:
        await siblings[0].listen(answers[0])
        await siblings[1].listen(answers[1])
        assert await siblings[0].ask_all("load") == [b"1"]
        assert sorted(await siblings[2].ask_all("load")) == [b"0", b"1"]
        assert await siblings[0].ask_all("what nobody knows") == []
        # One that was killed leaves its socket behind, and its successor takes the name.
        again = Siblings(str(tmp_path), 1, 3)
        await again.listen({"load": lambda _: b"5"})
        assert await siblings[0].ask_all("load") == [b"5"]
        again.close()
        await asyncio.sleep(0)
    finally:
        for one in siblings:
            one.close()
