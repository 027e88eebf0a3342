"""An application around the scripted engine: in memory for most tests, on a loopback port for the rest."""

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from tests.same_bits import same_bits
from tests.server.demo_process import DemoProcess
from tests.server.fake_llm import FakeLLM
from tests.server.process import Process
from vllm_server.app import build_app
from vllm_server.config import ServerConfig
from vllm_server.context import ServerContext
from vllm_server.running.uvicorn_server import create_server
from vllm_server.telemetry.registry import Registry
from vllm_server.telemetry.tracing import RequestTracer


def make_context(llm: FakeLLM, *, tracer: RequestTracer | None = None, **options: Any) -> ServerContext:
    """A context for ``build_app``; ``options`` are those of ``ServerConfig``."""
    return ServerContext(
        llm=llm,  # type: ignore[arg-type]
        config=ServerConfig(**options),
        chat_template=None,
        registry=Registry(),
        tracer=tracer,
    )


def make_client(app: ASGIApp) -> httpx.AsyncClient:
    """A client without sockets; errors in the application become responses, as under uvicorn."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@contextmanager
def running(context: ServerContext, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The application under uvicorn in a thread; gives its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = create_server(build_app(context), context.config, tls=tls)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("uvicorn did not start")
            threading.Event().wait(0.005)
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
async def client(llm: FakeLLM) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(build_app(make_context(llm))) as client:
        yield client


@pytest.fixture
def live(llm: FakeLLM) -> Iterator[str]:
    with running(make_context(llm)) as url:
        yield url


@pytest.fixture(scope="session")
def shared_live() -> Iterator[str]:
    """One server for all tests that leave no trace in the engine."""
    with running(make_context(FakeLLM())) as url:
        yield url


KEY_OF_DEMO = "key-of-demo"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    """``vllm serve demo`` for the official clients, which says the same twice; it wants ``KEY_OF_DEMO``."""
    flags = ("--api-key", KEY_OF_DEMO, "--enable-prompt-tokens-details")
    process = DemoProcess(tmp_path_factory.mktemp("demo"), *flags, **same_bits())
    yield process
    process.clean_up()


Post = Callable[..., Any]


@pytest.fixture
def complete(client: httpx.AsyncClient) -> Post:
    """``await complete(prompt="x", ...)``: the response of /v1/completions."""

    async def post(**fields: Any) -> httpx.Response:
        return await client.post("/v1/completions", json=fields)

    return post


@pytest.fixture
def chat(client: httpx.AsyncClient) -> Post:
    """``await chat(...)``: the response of /v1/chat/completions; the message is a greeting unless given."""

    async def post(**fields: Any) -> httpx.Response:
        return await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], **fields}
        )

    return post


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Give back the log handlers that ``run`` puts in place."""
    loggers = [
        logging.getLogger(name) for name in ("vllm_kernels", "vllm_engine", "vllm_server", "vllm_cli", "vllm_bench")
    ]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
