"""Holding an engine core in a call stack, a thread or a process: same results, and every kind of end is noticed."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.engine.models.tiny import make_tiny_model
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.core.clients import process as client_module
from vllm_engine.core.clients.base import AsyncClient
from vllm_engine.core.clients.inproc import InprocClient
from vllm_engine.core.clients.process import ProcessClient
from vllm_engine.core.clients.thread import ThreadClient
from vllm_engine.core.engine_core import EngineCore
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.messages import EngineFailed, EngineRequest
from vllm_engine.params import SamplingParams


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients")
    make_tiny_model("qwen3", path)
    return path


def config(path: Path, **options: object) -> EngineConfig:
    settings = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory_bytes": 2**24, "use_tqdm_on_load": False}
    return EngineArgs(str(path), **(settings | options)).create_config()


def request(name: str, start: int, count: int = 10) -> EngineRequest:
    return EngineRequest(name, list(range(start, start + 20)), SamplingParams(temperature=0.0), count, 0, [], [], [])


def solo(path: Path, wanted: EngineRequest) -> list[int]:
    client = InprocClient(config(path), path)
    client.add([wanted])
    tokens = []
    while client.has_unfinished():
        tokens += [token for update in client.step().updates for token in update.new_token_ids]
    client.close()
    return tokens


async def collect(client: AsyncClient, names: set[str]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {name: [] for name in names}
    waiting = set(names)
    while waiting:
        outputs = await asyncio.wait_for(client.next_outputs(), 30)
        for update in outputs.updates:
            tokens[update.request_id] += update.new_token_ids
            if update.finish_reason is not None:
                waiting.discard(update.request_id)
    return tokens


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_results_are_those_of_a_core_in_the_call_stack(kind: type[AsyncClient], model_path: Path) -> None:
    client = kind(config(model_path), model_path)
    try:
        ready = await client.start()
        assert ready.max_model_len == 128 and client.is_alive
        assert {"weights", "kv cache", "warm-up"} <= ready.phases.keys()
        wanted = [request("a", 5), request("b", 30)]
        client.add(wanted)
        tokens = await collect(client, {"a", "b"})
        assert tokens == {r.request_id: solo(model_path, r) for r in wanted}
        assert await client.call("check_invariants") is None
        with pytest.raises(RuntimeError, match="unknown control method 'nope'"):
            await client.call("nope")
    finally:
        client.close()


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_a_setting_that_cannot_be_honoured_is_reported_by_its_name(
    kind: type[AsyncClient], model_path: Path
) -> None:
    client = kind(config(model_path, max_model_len=10**6), model_path)
    try:
        with pytest.raises(ConfigError) as caught:
            await client.start()
        assert caught.value.field == "max_model_len"
    finally:
        client.close()


async def test_a_killed_engine_process_is_noticed_by_everyone_who_waits(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    try:
        await client.start()
        client.add([request("a", 5, count=100)])
        await client.next_outputs()
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineDead):
            while True:
                await asyncio.wait_for(client.next_outputs(), 5)
        assert not client.is_alive
        with pytest.raises(EngineDead):
            client.add([request("b", 5)])
        with pytest.raises(EngineDead):
            await client.call("check_invariants")
        client.abort(["a"])  # whoever cleans up must not fail
    finally:
        client.close()


async def test_close_leaves_no_process_and_no_socket(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    await client.start()
    client.add([request("a", 5, count=100)])
    pid, folder = client.pid, Path(client.socket_path).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    client.close()
    client.close()
    assert not psutil.pid_exists(pid) and not folder.exists()


async def test_a_close_before_the_model_is_loaded_ends_the_process(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    pid = client.pid
    client.close()
    assert not psutil.pid_exists(pid)


def test_no_orphan_survives_a_parent_that_was_killed(model_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from vllm_engine.config import EngineArgs\n"
        "from vllm_engine.core.clients.process import ProcessClient\n"
        "async def main():\n"
        "    path = Path(sys.argv[1])\n"
        "    args = EngineArgs(str(path), dtype='float32', kv_cache_memory_bytes=2**24)\n"
        "    client = ProcessClient(args.create_config(), path)\n"
        "    await client.start()\n"
        "    print(client.pid, client.socket_path, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(model_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, socket_path = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine process outlived its parent"
        time.sleep(0.02)
    assert not Path(socket_path).parent.exists()


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_a_client_that_was_closed_does_not_start(kind: type[AsyncClient], model_path: Path) -> None:
    client = kind(config(model_path), model_path)
    client.close()
    with pytest.raises(EngineDead):
        await client.start()
    assert not client.is_alive
    client.close()


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_a_close_while_the_model_loads_ends_the_start(kind: type[AsyncClient], model_path: Path) -> None:
    client = kind(config(model_path), model_path)
    start = asyncio.create_task(client.start())
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(EngineDead):
        await start
    assert not client.is_alive


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_a_start_that_is_cancelled_leaves_no_engine_that_looks_alive(
    kind: type[AsyncClient], model_path: Path
) -> None:
    client = kind(config(model_path), model_path)
    start = asyncio.create_task(client.start())
    await asyncio.sleep(0)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    assert not client.is_alive
    await client.aclose()


async def test_a_message_that_cannot_be_read_is_the_end_and_not_a_hang(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    try:
        await client.start()
        client._decoder = msgspec.msgpack.Decoder(int)  # type: ignore[assignment]
        client.add([request("a", 5)])
        with pytest.raises(EngineDead, match="cannot be read"):
            while True:
                await asyncio.wait_for(client.next_outputs(), 10)
    finally:
        client.close()


async def test_a_message_of_many_megabytes_gets_through(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    try:
        await client.start()
        too_long = EngineRequest("long", [1] * 5_000_000, SamplingParams(), 1, 0, [], [], [])
        client.add([too_long, request("a", 5)])
        assert len((await collect(client, {"long", "a"}))["a"]) == 10
    finally:
        client.close()


async def test_a_thread_that_ends_by_whatever_error_is_noticed(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: EngineCore) -> None:
        raise SystemExit("no exception that one would expect")

    client = ThreadClient(config(model_path), model_path)
    try:
        await client.start()
        monkeypatch.setattr(EngineCore, "step", fail)
        client.add([request("a", 5)])
        with pytest.raises(EngineDead):
            await asyncio.wait_for(client.next_outputs(), 10)
    finally:
        client.close()


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_the_event_loop_goes_on_while_a_busy_core_is_closed(
    kind: type[AsyncClient], model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SHUTDOWN_SECONDS", 0.3)
    monkeypatch.setattr(client_module, "PIPE_SECONDS", 0.3)
    client = kind(config(model_path), model_path)
    await client.start()
    if isinstance(client, ProcessClient):
        os.kill(client.pid, signal.SIGSTOP)  # it does not even notice that its pipe is closed
    else:
        step = EngineCore.step
        monkeypatch.setattr(EngineCore, "step", lambda core: (time.sleep(0.6), step(core))[1])
        client.add([request("a", 5)])
        await asyncio.sleep(0.05)
    call = asyncio.create_task(client.call("check_invariants"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.aclose())
    longest, before = 0.0, time.monotonic()
    while not closing.done():
        await asyncio.sleep(0.005)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    await closing
    assert longest < 0.25
    with pytest.raises(EngineDead):
        await call
    if isinstance(client, ProcessClient):
        assert not psutil.pid_exists(client.pid) and not Path(client.socket_path).parent.exists()


@pytest.mark.parametrize("folder", ["no such folder", "x" * 120])
async def test_a_folder_that_can_hold_no_socket_is_a_setting_at_fault(
    folder: str, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if folder.startswith("x"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    with pytest.raises(ConfigError) as caught:
        ProcessClient(config(model_path), model_path)
    assert caught.value.field == "TMPDIR"
    assert not list(tmp_path.glob("*/vllm-*"))


@pytest.mark.parametrize("program", ["/no/such/python", shutil.which("false")])
async def test_a_process_that_cannot_start_says_so_and_leaves_nothing(
    program: str, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short folder of our own: what is left behind would be seen.
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(sys, "executable", program)
        client = None
        with pytest.raises(EngineDead):
            client = ProcessClient(config(model_path), model_path)
            await client.start()
        if client is not None:
            await client.aclose()
        assert os.listdir(folder) == []


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_a_setting_at_fault_without_a_name_is_still_a_setting(kind: type[AsyncClient], tmp_path: Path) -> None:
    client = kind(config(tmp_path), tmp_path)
    ready = client._begin()
    client._receive(EngineFailed.of(ConfigError("these two exclude each other")))
    with pytest.raises(ConfigError, match="exclude") as caught:
        await ready
    assert caught.value.field is None
    client.close()


@pytest.mark.parametrize("kind", [ThreadClient, ProcessClient])
async def test_after_the_last_abort_the_state_says_that_nothing_runs(kind: type[AsyncClient], model_path: Path) -> None:
    client = kind(config(model_path), model_path)
    try:
        await client.start()
        client.add([request("a", 5, count=100)])
        assert (await client.next_outputs()).stats.num_running == 1
        client.abort(["a"])
        while (await asyncio.wait_for(client.next_outputs(), 5)).stats.num_running:
            pass
    finally:
        client.close()


async def test_an_abort_at_any_moment_stops_a_request(model_path: Path) -> None:
    client = ProcessClient(config(model_path), model_path)
    try:
        await client.start()
        client.add([request("doomed", 5, count=90), request("other", 40, count=60)])
        await client.next_outputs()
        client.abort(["doomed", "unknown"])
        tokens = []
        doomed_after = 0
        done = False
        while not done:
            outputs = await asyncio.wait_for(client.next_outputs(), 10)
            for update in outputs.updates:
                if update.request_id == "doomed":
                    doomed_after += 1
                else:
                    tokens += update.new_token_ids
                    done = update.finish_reason is not None
        assert doomed_after < 60
        await client.call("check_invariants")
    finally:
        client.close()
