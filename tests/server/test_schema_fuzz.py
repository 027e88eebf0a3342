"""Requests made from our OpenAPI page by ``schemathesis``, valid ones and broken ones, against the demo model.

Some hundreds in the ordinary tests, beside the table of hostile values; ``make fuzz`` sends ten thousand.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, openapi

from tests.same_bits import same_bits
from tests.server.control_stream import ControlStream
from tests.server.demo_process import DemoProcess
from tests.server.hostile import LEAK

FLAGS = ["--max-model-len", "160", "--enable-tokenizer-info-endpoint", "--enable-server-load-tracking"]
SHORT = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 16, "min_tokens": 2, "n": 3, "best_of": 3}
"""Most of each, where a request asks for more: what a test with few cores can wait for."""
NEEDED = {"model", "messages", "prompt", "input", "tokens", "max_tokens"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    process = DemoProcess(tmp_path_factory.mktemp("fuzz"), *FLAGS, VLLM_CHECK_INVARIANTS="1", **same_bits())
    yield process
    process.clean_up()


class Fuzz:
    """Sends cases, and remembers what was wrong with the answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent = 0
        self.statuses: dict[int, int] = {}
        self.faults: list[str] = []
        self._session = requests.Session()

    def send(self, case: Any, *, valid: bool) -> None:
        """One case, made short; a valid one also with few fields, as one among many that cannot be ends it early."""
        if not isinstance(case.body, dict):
            self._call(case)
            return
        body = dict(case.body)
        if valid:
            body["model"] = "demo"  # anything else ends at the first check
        for name, most in SHORT.items():
            if isinstance(body.get(name), int) and body[name] > most:
                body[name] = most
        if "max_tokens" not in body and {"messages", "prompt"} & body.keys():
            body["max_tokens"] = 4
        case.body = body
        self._call(case)
        if valid:
            few = [name for name in body if name not in NEEDED]
            few = few[self.sent % (len(few) or 1) :][:2]
            case.body = {name: value for name, value in body.items() if name in NEEDED or name in few}
            self._call(case)

    def _call(self, case: Any) -> None:
        with contextlib.suppress(requests.exceptions.InvalidHeader):  # which cannot be sent
            self._take(case.call(base_url=self.url, session=self._session, timeout=30), case)

    def _take(self, response: requests.Response, case: Any) -> None:
        self.sent += 1
        self.statuses[response.status_code] = self.statuses.get(response.status_code, 0) + 1
        text = response.content.decode("utf-8", "replace")
        if response.status_code >= 500 or LEAK.search(text):
            self.faults.append(f"{case.as_curl_command()[:1500]} -> {response.status_code} {text[:500]}")

    def run(self, num_cases: int) -> None:
        """About so many cases, shared out among the operations that take a body; the others are soon tried out."""
        description = httpx.get(f"{self.url}/openapi.json").json()
        operations = [found.ok() for found in openapi.from_dict(description).get_all_operations()]
        rich = [operation for operation in operations if operation.body]
        for operation in operations:
            if operation not in rich:
                self._cases(operation, GenerationMode.POSITIVE, 10 if operation.path_parameters else 2)
        share = max(2, num_cases // (3 * len(rich) + 4))
        for operation in rich:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._cases(operation, mode, share)

    def _cases(self, operation: Any, mode: GenerationMode, count: int) -> None:
        @seed(1)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            self.send(case, valid=mode is GenerationMode.POSITIVE)

        with contextlib.suppress(Unsatisfiable):  # nothing about it can be broken
            send()


def check(server: DemoProcess, num_cases: int) -> None:
    children = {child.pid for child in psutil.Process(server.process.pid).children(recursive=True)}
    fuzz = Fuzz(server.url)
    with ControlStream(server.url) as control:
        fuzz.run(num_cases)
    print(f"{fuzz.sent} requests, by status: {dict(sorted(fuzz.statuses.items()))}")
    assert fuzz.faults[:3] == []
    assert fuzz.sent > num_cases * 0.7
    assert fuzz.statuses.keys() >= {200, 400}
    control.check()
    assert server.core.is_running()
    assert {child.pid for child in psutil.Process(server.process.pid).children(recursive=True)} == children
    assert server.status("/health") == 200


def test_hundreds_of_requests_of_the_schema_hurt_nothing(server: DemoProcess) -> None:
    check(server, 700)


@pytest.mark.fuzz
def test_many_requests_of_the_schema_hurt_nothing(server: DemoProcess) -> None:
    check(server, int(os.environ.get("FUZZ_CASES", "12000")))


def test_the_log_holds_no_stack(server: DemoProcess) -> None:
    assert "Traceback" not in Path(server.log).read_text()
