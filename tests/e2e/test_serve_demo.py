"""``vllm serve demo`` as a user meets it: real processes, the official client, and every way to end it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.serving import DemoServer, all_gone
from tests.same_bits import same_bits

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
# Each character is three or four bytes, none of which the demo's vocabulary joins: every byte is a token of its own.
MULTILINGUAL = "日本語 한국어 العربية ελληνικά 🙂👩‍👩‍👧‍👦🇫🇷 é ñ"


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer("--kv-cache-memory-bytes", str(256 * 2**20), env=same_bits()) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: DemoServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_the_official_client_chats_streamed_or_not(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="demo", messages=CAPITAL, temperature=0)  # type: ignore[arg-type]
    assert "Paris" in (plain.choices[0].message.content or "")
    assert plain.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model="demo",
        messages=CAPITAL,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )  # type: ignore[union-attr]


def test_the_models_route_lists_the_demo(client: OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["demo"]


@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_is_the_text_of_the_whole_answer_for_tokens_of_single_bytes(client: OpenAI, seed: int) -> None:
    """A strong bias makes the model write bytes of many scripts in an order that no text would have."""
    settings: dict[str, Any] = {
        "model": "demo",
        "prompt": MULTILINGUAL,
        "max_tokens": 80,
        "temperature": 1.5,
        "seed": seed,
        "extra_body": {"ignore_eos": True, "top_k": 40, "return_token_ids": True},
    }
    whole = client.completions.create(**settings)
    parts = list(client.completions.create(**settings, stream=True))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text


def test_every_completion_of_n_arrives_under_its_index(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=CAPITAL,  # type: ignore[arg-type]
        n=3,
        temperature=0,
        stream=True,
    )
    texts = {0: "", 1: "", 2: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert len(set(texts.values())) == 1 and "Paris" in texts[0]


def test_a_stop_string_ends_the_text_and_none_of_it_is_seen(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=CAPITAL,  # type: ignore[arg-type]
        temperature=0,
        stop=["France is"],
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "The capital of "


def test_bad_input_is_refused_with_the_name_of_the_field(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=CAPITAL, temperature=-1)  # type: ignore[arg-type]
    assert caught.value.param == "temperature"
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(model="demo", prompt="a " * 5000)
    assert caught.value.param == "prompt" and "2048" in str(caught.value)


def test_a_closed_connection_aborts_its_request(server: DemoServer) -> None:
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 1900, "ignore_eos": True, "min_tokens": 1900}
    for streamed in (True, False):
        with httpx.Client(timeout=60) as http:
            if streamed:
                with http.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as response:
                    lines = response.iter_lines()  # dropping the iterator would close the connection
                    next(lines)
                    until(lambda: server.metric("vllm:num_requests_running") == 1)
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post(f"{server.url}/v1/completions", json=body, timeout=0.5)
        until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_the_counters_agree_with_what_clients_were_told(server: DemoServer, client: OpenAI) -> None:
    before = [server.metric(f"vllm:{name}_tokens_total") for name in ("prompt", "generation")]
    told = [0, 0]
    for _ in range(5):
        usage = client.chat.completions.create(model="demo", messages=CAPITAL, temperature=0).usage  # type: ignore[arg-type]
        assert usage is not None
        told = [told[0] + usage.prompt_tokens, told[1] + usage.completion_tokens]
    after = [server.metric(f"vllm:{name}_tokens_total") for name in ("prompt", "generation")]
    assert [after[0] - before[0], after[1] - before[1]] == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_even_while_requests_run(number: signal.Signals) -> None:
    with DemoServer("--kv-cache-memory-bytes", str(64 * 2**20)) as server:
        children = server.descendants()
        assert children, "the engine core is a process of its own"
        body = {"model": "demo", "prompt": "Hello", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            assert server.stop(number) == 0
            rest = [line for line in lines if line]
        assert any('"error"' in line for line in rest), "the stream ends with an error event"
        assert all_gone(children)


def test_ctrl_c_in_the_terminal_ends_every_process() -> None:
    """The terminal sends the signal to the whole process group, the engine core too."""
    with DemoServer("--kv-cache-memory-bytes", str(64 * 2**20)) as server:
        children = server.descendants()
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=15) == 0
        assert all_gone(children)


def test_kill_9_of_the_server_leaves_no_orphan() -> None:
    with DemoServer("--kv-cache-memory-bytes", str(64 * 2**20)) as server:
        children = server.descendants()
        server.process.kill()
        server.process.wait()
        assert all_gone(children)


def test_a_dead_engine_is_told_to_clients_and_ends_the_server() -> None:
    with DemoServer("--kv-cache-memory-bytes", str(64 * 2**20)) as server:
        body = {"model": "demo", "prompt": "Hello", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            for child in server.descendants():
                child.kill()
            assert any('"error"' in line for line in lines)
        assert server.process.wait(timeout=15) == 1


def test_the_core_can_run_in_the_server_process() -> None:
    with DemoServer("--disable-frontend-multiprocessing", "--kv-cache-memory-bytes", str(64 * 2**20)) as server:
        assert server.descendants() == []
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"model": "demo", "messages": CAPITAL, "temperature": 0},
            timeout=30,
        ).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_model_that_cannot_be_fetched_is_an_error_that_names_the_demo(tmp_path: Any) -> None:
    import subprocess
    import sys

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "vllm_cli", "serve", "--port", "0"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Qwen/Qwen3-0.6B" in done.stderr and "demo" in done.stderr and "Traceback" not in done.stderr


def test_nothing_of_the_server_listens_but_its_port(server: DemoServer) -> None:
    processes = [psutil.Process(server.process.pid), *server.descendants()]
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", server.port)]
