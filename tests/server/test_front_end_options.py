"""Where the server listens, under which prefix it is published, and what it logs."""

import signal
import socket

import httpx
import pytest

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM
from tests.server.process import Process
from vllm_server.app import build_app
from vllm_server.config import DEFAULT_HOST
from vllm_server.running.sockets import bind, url_of


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_process_listens_where_it_is_told(processes: list[Process]) -> None:
    port = free_port()
    processes.append(process := Process("--host", "localhost", "--port", str(port), "--root-path", "/llm"))
    assert process.url in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    for path in ("/v1/models", "/llm/v1/models"):
        assert httpx.get(f"{process.url}{path}").json()["data"][0]["id"] == "demo"


def test_no_other_machine_is_listened_to_unless_told() -> None:
    assert DEFAULT_HOST == "127.0.0.1"
    with bind(DEFAULT_HOST, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_the_documentation_knows_the_prefix() -> None:
    async with make_client(build_app(make_context(FakeLLM(), root_path="/some/llm"))) as client:
        for prefix in ("", "/some/llm"):
            description = (await client.get(f"{prefix}/openapi.json")).json()
            assert [one["url"] for one in description["servers"]] == ["/some/llm"]
            assert "/v1/models" in description["paths"]
            assert "'/some/llm/openapi.json'" in (await client.get(f"{prefix}/docs")).text


@pytest.mark.parametrize("root_path", ["/v1", "/llm"])
def test_a_prefix_may_look_like_a_route(root_path: str) -> None:
    with running(make_context(FakeLLM(), root_path=root_path)) as url:
        assert httpx.get(f"{url}{root_path}/v1/models").status_code == 200
        assert httpx.get(f"{url}/livez").status_code == 200


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("trace", {"access": True, "trace": True}),
        ("info", {"access": True, "trace": False}),
        ("warning", {"access": False, "trace": False}),
    ],
)
def test_the_log_holds_what_its_level_says(level: str, shown: dict[str, bool], processes: list[Process]) -> None:
    processes.append(process := Process("--uvicorn-log-level", level))
    assert httpx.get(f"{process.url}/livez").status_code == 200
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    held = {
        "access": any('"GET /livez HTTP/1.1" 200' in line for line in process.log),
        "trace": any("HTTP connection made" in line for line in process.log),
    }
    assert held == shown
