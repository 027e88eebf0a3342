"""Where the server listens, under which prefix it is published, and what it logs."""

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.conftest import make_client, make_context, running
from tests.server.fake_llm import FakeLLM
from tests.server.process import Process
from vllm_engine.errors import ConfigError
from vllm_server.app import build_app
from vllm_server.config import DEFAULT_HOST, create_server_config
from vllm_server.running.sockets import bind, unix_socket, url_of


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_process_listens_where_it_is_told(processes: list[Process]) -> None:
    port = free_port()
    processes.append(process := Process("--host", "localhost", "--port", str(port), "--root-path", "/llm"))
    assert process.url in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
    for path in ("/v1/models", "/llm/v1/models"):
        assert httpx.get(f"{process.url}{path}").json()["data"][0]["id"] == "demo"


def test_a_unix_socket_is_listened_on_and_gone_at_the_end(
    processes: list[Process], short_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = short_folder / "vllm.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))  # as one that was killed has left it
    processes.append(process := Process("--uds", str(path), listen=()))
    assert process.url == f"unix:{path}"
    assert f"--unix-socket {path} " in process.wait_for("try: ") and "http://localhost/v1/" in process.wait_for("try: ")
    assert path.stat().st_mode & 0o117 == 0
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
        body = {"prompt": "hi", "max_tokens": 3, "stream": True}
        assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
    # Nobody else gets the place, and nothing but it is listened to.
    processes.append(second := Process("--uds", str(path), listen=()))
    assert second.end() == 2
    assert second.log[-1] == f"vllm serve: error: --uds: another server listens on {path}"
    assert not psutil.Process(process.process.pid).net_connections("inet")
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert not list(short_folder.iterdir())


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a socket has a hundred bytes, and those of tests are long."""
    with tempfile.TemporaryDirectory(prefix="uds-") as folder:
        yield Path(folder)


def test_a_path_is_taken_when_nobody_has_it(short_folder: Path) -> None:
    path = short_folder / "s"
    before = os.umask(0o007)
    try:
        with unix_socket(str(path)) as listener:
            assert path.stat().st_mode & 0o777 == 0o660  # the group may come in, as the umask says
            for name, said in (
                (path, "another server"),  # although it does not listen yet
                (short_folder / "no" / "s", "No such file"),
                (short_folder / ("s" * 200), "too long"),
                (Path(__file__), "no socket"),
            ):
                with pytest.raises(ConfigError, match=said) as caught, unix_socket(str(name)):
                    pass
                assert caught.value.field == "uds"
            # Another file in its place is not ours to remove.
            path.unlink()
            path.write_text("mine")
            assert listener.fileno() > 0
        assert path.read_text() == "mine"
    finally:
        os.umask(before)
    for other in ({"host": "localhost"}, {"port": 0}):
        with pytest.raises(ConfigError, match="exclude each other"):
            create_server_config({"uds": "/tmp/s", **other})


def test_the_head_of_a_request_has_bounds() -> None:
    config = {"h11_max_incomplete_event_size": 2048, "h11_max_header_count": 12}
    with running(make_context(FakeLLM(), **config)) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))

        def status(*pieces: bytes) -> bytes:
            """The first line of the answer, and whether its body is one of ours."""
            with socket.create_connection(address, timeout=5) as client:
                try:
                    for piece in pieces:
                        client.sendall(piece)
                        time.sleep(0.01)
                except OSError:  # closed before it had everything
                    pass
                answer = client.makefile("rb").read()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert not head or head.startswith(b"HTTP/1.1 200") or json.loads(body)["error"]["code"]
            return head.split(b"\r\n")[0][9:12]

        start, end = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", b"\r\n"
        assert status(start, end) == b"200"
        assert status(start, b"X: y\r\n" * 10, end) == b"200"
        assert status(start, b"X: y\r\n" * 11, end) == b"431"
        assert status(start, b"X: ", b"y" * 1900, b"\r\n", end) == b"200"
        assert status(start, b"X: " + b"y" * 2100 + b"\r\n" + end) == b"431"
        assert status(start, b"X: ", *[b"y" * 500] * 6) == b"431"  # it never ends
        assert status(b"GET /" + b"y" * 3000) == b"431"
        assert status(b"this is no HTTP\r\n\r\n") == b"400"
        # Bodies have bounds of their own, and so has what follows one in pieces.
        body = json.dumps({"prompt": "x" * 400, "max_tokens": 1}).encode()
        post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        whole = b"%sContent-Length: %d\r\n\r\n%s" % (post, len(body) + 9000, body + b" " * 9000)
        assert status(whole[:3000], whole[3000:]) == b"200"
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body)  # five bytes about each one
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n" + pieces
        assert len(chunked) - len(body) > 2048
        assert status(chunked[:1500], chunked[1500:] + b"0\r\n\r\n") == b"200"
        assert status(chunked, b"0\r\nX: ", *[b"y" * 500] * 6) == b"431"
        assert status(start, end) == b"200"


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
