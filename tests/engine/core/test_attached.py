"""Several clients of a core in a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.engine.core.test_clients import collect, config, model_path, request, solo, until
from vllm_engine.async_llm import AsyncLLM
from vllm_engine.config import EngineConfig
from vllm_engine.core.clients.attached import AttachedClient, CoreAddress
from vllm_engine.core.clients.process import ProcessClient
from vllm_engine.errors import EngineDead
from vllm_engine.params import SamplingParams

__all__ = ["model_path"]

# A client in a process of its own that asks for much and says when it has begun.
CLIENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from tests.engine.core.test_clients import config, request
from vllm_engine.core.clients.attached import AttachedClient, CoreAddress

async def main(path, address):
    client = AttachedClient(config(path), path, address)
    await client.start()
    client.add([request("theirs-1", 3, 100), request("theirs-2", 4, 100)])
    await client.call("is_sleeping")
    print("begun", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=CoreAddress)))
"""


@pytest.fixture
async def parent(model_path: Path) -> AsyncIterator[ProcessClient]:
    client = ProcessClient(config(model_path), model_path, with_others=True)
    folder = Path(client.folder)
    try:
        await client.start()
        yield client
    finally:
        await client.aclose()
    assert not folder.exists()


async def attach(parent: ProcessClient, path: Path, name: str) -> AttachedClient:
    client = AttachedClient(config(path), path, parent.address(name, tells_stacks=False))
    assert (await asyncio.wait_for(client.start(), 5)).max_model_len == 128
    return client


async def test_each_client_gets_its_own_and_all_are_those_of_one(parent: ProcessClient, model_path: Path) -> None:
    clients = {name: await attach(parent, model_path, name) for name in ("a", "b")}
    wanted = {name: [request(f"{name}-{i}", 5 * i + 1) for i in range(3)] for name in clients}
    for name, client in clients.items():
        client.add(wanted[name])
    for name, client in clients.items():
        tokens = await collect(client, {one.request_id for one in wanted[name]})
        assert tokens == {one.request_id: solo(model_path, one) for one in wanted[name]}
    assert parent._outputs.empty()  # nobody would ever take them
    # Controls work from any, and their answers come to whom they are for.
    heard = []
    clients["b"].on_message = lambda: heard.append(1)
    clients["b"].ping()
    await until(lambda: len(heard) == 1)
    assert await clients["a"].call("sleep", 0) is None
    assert await clients["b"].call("is_sleeping") is await parent.call("is_sleeping") is True
    clients["a"].add([request("a-held", 5)])
    await clients["b"].call("wake_up")
    await collect(clients["a"], {"a-held"})
    await clients["b"].call("reset_prefix_cache")
    # One leaves, the other and the core go on.
    await clients["a"].aclose()
    parent.forget("a")
    clients["b"].add([request("b-more", 7)])
    assert await collect(clients["b"], {"b-more"}) == {"b-more": solo(model_path, request("b-more", 7))}
    cpu = clients["b"].cpu_seconds()
    assert cpu is not None and cpu > 0
    await clients["b"].aclose()


async def test_a_killed_client_frees_what_it_held(parent: ProcessClient, model_path: Path) -> None:
    other = await attach(parent, model_path, "other")
    await parent.call("sleep", 0)  # nothing must end by itself
    address = msgspec.json.encode(parent.address("theirs", tells_stacks=False)).decode()
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(model_path), address], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        other.add([request("mine", 5)])
        process.kill()
        process.wait()
        parent.forget("theirs")
        await parent.call("wake_up")
        tokens: list[int] = []
        while len(tokens) < 10:
            outputs = await asyncio.wait_for(other.next_outputs(), 5)
            tokens += [token for update in outputs.updates for token in update.new_token_ids]
        assert tokens == solo(model_path, request("mine", 5))
        # No step had another request, and nothing is left.
        assert (outputs.stats.num_running, outputs.stats.num_waiting, outputs.stats.num_steps) == (0, 0, 10)
        assert outputs.stats.prefix_cache_queries == 20
    finally:
        process.kill()
        process.stdout.close()  # type: ignore[union-attr]
        process.wait()
        await other.aclose()


async def test_all_clients_notice_the_end_of_the_core(parent: ProcessClient, model_path: Path) -> None:
    clients = [await attach(parent, model_path, name) for name in ("a", "b")]
    os.kill(parent.pid, signal.SIGKILL)
    for client in clients:
        with pytest.raises(EngineDead):
            while True:
                await asyncio.wait_for(client.next_outputs(), 5)
        assert not client.is_alive
        await client.aclose()


def settings(path: Path) -> EngineConfig:
    return config(path, skip_tokenizer_init=True)


async def test_two_engines_of_a_program_share_a_core(
    parent: ProcessClient, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ITERATION_TIMEOUT_S", "0.4")

    def engine(address: CoreAddress) -> AsyncLLM:
        return AsyncLLM(settings(model_path), core=address)

    async def tokens(llm: AsyncLLM, seed: int) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=20, ignore_eos=True, detokenize=False)
        outputs = [output async for output in llm.generate({"prompt_token_ids": [5, 6, 7]}, params)]
        return list(outputs[-1].outputs[0].token_ids)

    async with (
        engine(parent.address("one", tells_stacks=True)) as one,
        engine(parent.address("two", tells_stacks=False)) as two,
    ):
        results = await asyncio.gather(*(tokens(llm, seed) for llm in (one, two) for seed in range(4)))
        assert results[:4] == results[4:] and len({tuple(result) for result in results}) == 4
        # Who has not asked for the sleep does not take it for a death.
        await parent.call("sleep", 0)
        await until(lambda: one.asleep and two.asleep)
        held = asyncio.create_task(tokens(two, 1))
        await asyncio.sleep(1.5)
        two.check_health()
        await one.wake_up()
        assert await held == results[1]
        await until(lambda: not two.asleep)
