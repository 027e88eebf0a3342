"""The server around the real engine and the built-in demo model, as one process tree."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.same_bits import same_bits, same_bits_here
from vllm_engine import LLM, SamplingParams

SERVE = (
    "import argparse, sys; from vllm_server.serve import add_arguments, run;"
    "parser = argparse.ArgumentParser(); add_arguments(parser); sys.exit(run(parser.parse_args()))"
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Served:
    """``vllm serve demo`` on a free port."""

    def __init__(self) -> None:
        self.launched = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "demo", "--port", "0", "--num-gpu-blocks-override", "512"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **same_bits()},
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert self.ready.startswith("ready"), self.ready
        self.url = self.ready.split()[-1]

    def metric(self, name: str, label: str = "") -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = re.findall(rf"^{re.escape(name)}{{.*{re.escape(label)}.*}} (\S+)$", text, re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def offline() -> Iterator[LLM]:
    with same_bits_here(), LLM("demo", num_gpu_blocks_override=512) as llm:
        yield llm


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_greedy_answers_are_those_of_the_library(client: openai.OpenAI, offline: LLM) -> None:
    prompts = ["The capital of France is", "Hello", "One two three"]
    params = SamplingParams(temperature=0, max_tokens=12)
    expected = [output.outputs[0].text for output in offline.generate(prompts, params)]
    answer = client.completions.create(model="demo", prompt=prompts, temperature=0, max_tokens=12)
    assert [choice.text for choice in answer.choices] == expected


def test_a_chat_answers_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    fields = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**fields).choices[0].message.content  # type: ignore[call-overload]
    stream = client.chat.completions.create(stream=True, **fields)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole
    assert "Paris" in whole


def test_a_seed_gives_the_same_text_twice(client: openai.OpenAI) -> None:
    fields = {"model": "demo", "prompt": "Once", "seed": 5, "temperature": 1.5, "max_tokens": 16}
    texts = {client.completions.create(**fields).choices[0].text for _ in range(2)}  # type: ignore[call-overload]
    assert len(texts) == 1


def test_logprobs_of_an_echo_are_those_of_the_library(client: openai.OpenAI, offline: LLM) -> None:
    prompt = "The capital of France is"
    answer = client.completions.create(model="demo", prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    shown = answer.choices[0].logprobs
    assert shown is not None
    (output,) = offline.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=1))
    assert output.prompt_logprobs is not None
    expected = [
        position[token_id].logprob
        for token_id, position in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        if position is not None
    ]
    assert shown.token_logprobs is not None
    assert shown.token_logprobs[0] is None
    assert shown.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
    assert "".join(shown.tokens or []) == answer.choices[0].text == prompt


def test_what_the_model_cannot_take_is_refused(client: openai.OpenAI) -> None:
    for fields, param in [
        ({"prompt": "word " * 5000}, "prompt"),
        ({"prompt": "x" * 300_000}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"prompt": "x", "extra_body": {"stop_token_ids": [1_000_000]}}, "stop_token_ids"),
    ]:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model="demo", **fields)  # type: ignore[call-overload]
        assert error.value.param == param


def test_metrics_count_exactly_what_clients_were_told(served: Served, client: openai.OpenAI) -> None:
    names = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"]
    before = [served.metric(name) for name in names]
    usages = [
        client.completions.create(model="demo", prompt=["Hello", "You"], n=2, max_tokens=count).usage
        for count in (1, 3, 5)
    ]
    told = [sum(item.prompt_tokens for item in usages if item), sum(item.completion_tokens for item in usages if item)]
    after = [served.metric(name) for name in names]
    assert [new - old for old, new in zip(before, after, strict=True)] == [*told, 6]
    assert served.metric("vllm:num_requests_running") == 0


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    body = {"prompt": "Hello", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    aborted = "vllm:request_success_total", 'finished_reason="abort"'
    assert served.metric(*aborted) == 0
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=30) as response:
        next(response.iter_bytes())
    deadline = time.monotonic() + 5
    while served.metric(*aborted) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The engine tells of its state with each step: one more shows that nothing is left of the request.
    httpx.post(f"{served.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 1}, timeout=30).raise_for_status()
    assert served.metric("vllm:num_requests_running") == 0
    assert served.metric("vllm:kv_cache_usage_perc") == 0


def test_when_the_engine_is_killed_clients_are_told_and_the_server_ends_with_one() -> None:
    served = Served()
    events: list[str] = []
    begun = threading.Event()

    def read() -> None:
        body = {"prompt": "Hello", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=30) as response:
            for line in response.iter_lines():
                events.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    (core,) = psutil.Process(served.process.pid).children()
    core.kill()
    assert served.process.wait(timeout=20) == 1
    reader.join(timeout=10)
    last = json.loads([line for line in events if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "engine_dead"
