"""``AsyncLLM`` on a scripted core and on the built-in model."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.engine.frontend.scripted_core import AsyncDouble, ScriptedCore, echo, ids, model_folder, says
from vllm_engine import AsyncLLM, EngineArgs, OutputKind, RequestOutput, SamplingParams
from vllm_engine.errors import ConfigError, EngineDead, InvalidRequest, Overloaded, RequestFailed
from vllm_engine.frontend.delivery import MAX_STEPS_AT_ONCE
from vllm_engine.frontend.engine_frontend import ModelFrontend
from vllm_engine.frontend.pacing import Pacing
from vllm_engine.messages import SchedulerStats
from vllm_engine.metrics.stats import RequestStats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


class Recorder:
    """A statistics logger that keeps everything."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generation_tokens = 0
        self.ttfts: list[float] = []
        self.gaps: list[float] = []
        self.finished: list[RequestStats] = []

    def on_step(
        self,
        stats: SchedulerStats,
        num_prompt_tokens: int,
        num_generation_tokens: int,
        *,
        num_cached_tokens: int,
        times_to_first_token: Any = (),
        inter_token_latencies: Any = (),
    ) -> None:
        self.prompt_tokens += num_prompt_tokens
        self.generation_tokens += num_generation_tokens
        self.ttfts.extend(times_to_first_token)
        self.gaps.extend(inter_token_latencies)

    def on_finished(self, stats: RequestStats) -> None:
        self.finished.append(stats)


@pytest.fixture
async def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Callable[..., Any], None]:
    """Starts engines on scripted cores; closes them after the test."""
    engines: list[AsyncLLM] = []

    async def start(core: ScriptedCore, fault: Exception | None = None, **options: Any) -> tuple[AsyncLLM, AsyncDouble]:
        client = AsyncDouble(core)
        client.fault = fault
        monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: client)
        loggers = options.pop("stat_loggers", ())
        bounded = options.pop("bounded", False)
        llm = AsyncLLM(EngineArgs(str(folder), **options), stat_loggers=loggers, bounded=bounded)
        engines.append(llm)
        await llm.start()
        return llm, client

    yield start
    for engine in engines:
        await engine.close()


async def collect(stream: AsyncGenerator[RequestOutput, None]) -> list[RequestOutput]:
    return [output async for output in stream]


def delta(**params: Any) -> SamplingParams:
    return SamplingParams(**{"output_kind": OutputKind.DELTA, "max_tokens": None} | params)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_many_requests_stream_side_by_side(start: Callable[..., Any]) -> None:
    recorder = Recorder()
    llm, _ = await start(ScriptedCore(echo, tokens_per_step=2), stat_loggers=[recorder])
    texts = [f"the cat {i} 😀" for i in range(40)]
    results = await asyncio.gather(*(collect(llm.generate(text, delta(), f"id{i}")) for i, text in enumerate(texts)))
    for i, (text, outputs) in enumerate(zip(texts, results, strict=True)):
        assert "".join(output.outputs[0].text for output in outputs) == text
        assert {output.request_id for output in outputs} == {f"id{i}"}
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert llm.num_requests == 0
    await until(lambda: recorder.generation_tokens == sum(len(ids(text)) + 1 for text in texts))
    assert recorder.prompt_tokens == sum(len(ids(text)) for text in texts)
    assert len(recorder.finished) == len(recorder.ttfts) == 40
    assert len(recorder.gaps) == recorder.generation_tokens - 40
    assert {stats.finish_reason for stats in recorder.finished} == {"stop"}


async def test_several_completions_of_a_request_end_together(start: Callable[..., Any]) -> None:
    llm, _ = await start(ScriptedCore(says("the cat")))
    (output,) = await collect(llm.generate("a", delta(n=3, output_kind=OutputKind.FINAL_ONLY)))
    assert [(c.index, c.text) for c in output.outputs] == [(0, "the cat"), (1, "the cat"), (2, "the cat")]


async def test_a_stop_string_ends_the_request_in_the_core(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat sat on the mat and the dog sat")))
    outputs = await collect(llm.generate("a", delta(stop=["mat"])))
    assert "".join(output.outputs[0].text for output in outputs) == "the cat sat on the "
    assert client.core.aborted == [client.core.added[0].request_id]
    assert client.core.running == {}


@pytest.mark.parametrize("how", ["leave", "close", "cancel", "cancel before the first output"])
async def test_a_consumer_that_goes_away_ends_its_request_at_once(start: Callable[..., Any], how: str) -> None:
    recorder = Recorder()
    llm, client = await start(ScriptedCore(says("the cat " * 20)), stat_loggers=[recorder])
    client.pause()
    other = asyncio.create_task(collect(llm.generate("a", delta(), "other")))
    await until(lambda: client.core.added)
    stream = llm.generate("a", delta(n=2), "mine")

    async def leave() -> None:
        async for _ in stream:
            break
        await stream.aclose()

    async def close() -> None:
        await anext(stream)
        await stream.aclose()

    task = asyncio.create_task({"leave": leave, "close": close}.get(how, lambda: collect(stream))())
    await until(lambda: len(client.core.added) == 3)
    if how != "cancel before the first output":
        client.resume(num_steps=3)
    if how.startswith("cancel"):
        await until(lambda: recorder.generation_tokens == (9 if how == "cancel" else 0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task
    assert sorted(client.core.aborted) == sorted(request.request_id for request in client.core.added[1:])
    client.resume()
    assert "".join(output.outputs[0].text for output in await other).startswith("the cat the cat")
    assert llm.num_requests == 0
    assert sorted(stats.finish_reason for stats in recorder.finished) == ["abort", "length"]


@pytest.mark.parametrize("kind", [OutputKind.DELTA, OutputKind.FINAL_ONLY])
async def test_what_a_consumer_has_not_seen_is_told_when_it_goes_away(
    start: Callable[..., Any], kind: OutputKind
) -> None:
    class Pausing(Recorder):
        def on_step(self, *arguments: Any, **keywords: Any) -> None:
            super().on_step(*arguments, **keywords)
            if self.generation_tokens == 12:
                client.pause()

    recorder = Pausing()
    llm, client = await start(ScriptedCore(says("the cat " * 20)), stat_loggers=[recorder])
    rest: list[RequestOutput] = []
    seen = 0

    async def consume() -> None:
        nonlocal seen
        params = delta(n=2, output_kind=kind)
        async with aclosing(llm.generate("a", params, on_abandoned=rest.append)) as outputs:
            async for output in outputs:
                seen += sum(len(completion.token_ids) for completion in output.outputs)
                await asyncio.sleep(0.002)  # slow enough that something waits

    task = asyncio.create_task(consume())
    await until(lambda: recorder.generation_tokens >= 12)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    client.resume()
    (last,) = rest
    assert last.finished and {item.finish_reason for item in last.outputs} == {"abort"}
    (stats,) = recorder.finished
    assert seen + sum(len(item.token_ids) for item in last.outputs) == stats.num_generation_tokens
    # One that is read to its end leaves nothing.
    await collect(llm.generate("a", delta(max_tokens=3), on_abandoned=rest.append))
    assert len(rest) == 1


async def test_abort_ends_the_stream_with_its_reason(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat " * 20)))
    stream = llm.generate("a", delta(), "mine")
    await anext(stream)
    client.pause()
    await llm.abort("mine")
    await llm.abort("nobody's")
    rest = await collect(stream)
    assert rest[-1].outputs[0].finish_reason == "abort"
    assert rest[-1].finished
    assert client.core.running == {}


async def test_a_request_can_be_aborted_while_its_prompt_is_tokenized(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, client = await start(ScriptedCore(echo, max_model_len=60_000))
    monkeypatch.setattr(
        type(llm.tokenizer),
        "encode",
        lambda *_: time.sleep(0.1) or [1, 2, 3],  # type: ignore[func-returns-value]
    )
    task = asyncio.create_task(collect(llm.generate("a" * 20_000, delta(), "long")))
    await until(lambda: llm.num_requests)
    await llm.abort("long")
    (output,) = await task
    assert output.outputs[0].finish_reason == "abort"
    assert client.core.added == []


async def test_a_long_prompt_is_tokenized_beside_the_event_loop(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, _ = await start(ScriptedCore(echo, max_model_len=60_000))
    monkeypatch.setattr(
        type(llm.tokenizer),
        "encode",
        lambda *_: time.sleep(0.2) or [1, 2, 3],  # type: ignore[func-returns-value]
    )
    task = asyncio.create_task(collect(llm.generate("a" * 20_000, delta())))
    beats = 0
    while not task.done():
        await asyncio.sleep(0.005)
        beats += 1
    assert beats > 10
    await task


async def test_a_slow_consumer_finds_everything_in_one_piece(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat sat on the mat")))
    stream = llm.generate("a", delta())
    first = await anext(stream)
    await until(lambda: not client.core.has_unfinished())
    rest = await collect(stream)
    assert len(rest) == 1
    assert first.outputs[0].text + rest[0].outputs[0].text == "the cat sat on the mat"
    assert first.outputs[0].token_ids + rest[0].outputs[0].token_ids == ids("the cat sat on the mat")


async def test_steps_of_a_core_that_is_ahead_come_together_but_not_without_end(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat sat on the mat and the dog sat")))
    client.is_ahead = True
    outputs = await collect(llm.generate("a", delta()))
    assert "".join(output.outputs[0].text for output in outputs) == "the cat sat on the mat and the dog sat"
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert counts[:-1] == [MAX_STEPS_AT_ONCE] * (len(counts) - 1) and sum(counts) > 2 * MAX_STEPS_AT_ONCE


async def test_where_handing_out_takes_most_of_the_time_steps_come_in_pairs_but_first_tokens_and_ends_at_once(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pacing, "patience", lambda *_: 0.004)
    llm, client = await start(ScriptedCore(says("the cat sat on the mat and the dog sat")))
    outputs = await collect(llm.generate("a", delta()))
    assert "".join(output.outputs[0].text for output in outputs) == "the cat sat on the mat and the dog sat"
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert counts[0] == 1 and set(counts[1:-1]) == {2} and counts[-1] <= 2
    assert client.waits == [0.004] * sum(count == 2 for count in counts)


async def test_a_request_id_can_run_only_once_at_a_time(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat sat")))
    stream = llm.generate("a", delta(), "same")
    await anext(stream)
    with pytest.raises(InvalidRequest) as caught:
        await anext(llm.generate("b", delta(), "same"))
    assert caught.value.field == "request_id"
    assert "".join(output.outputs[0].text for output in await collect(stream)).endswith(" sat")
    assert await collect(llm.generate("b", delta(), "same"))
    assert not any("same" in request.request_id for request in client.core.added)


async def test_bad_requests_are_refused_and_leave_nothing_behind(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(echo))
    for prompt, field in (([], "prompt"), ([10**6], "prompt"), ({"prompt": "a", "cache_salt": ""}, "cache_salt")):
        with pytest.raises(InvalidRequest) as caught:
            await anext(llm.generate(prompt, delta(), "again"))  # type: ignore[arg-type]
        assert caught.value.field == field
    for params, request_id, field in (({"n": 1}, None, "sampling_params"), (delta(), 5, "request_id")):
        with pytest.raises(InvalidRequest) as caught:
            await anext(llm.generate("a", params, request_id))  # type: ignore[arg-type]
        assert caught.value.field == field
    assert client.core.added == []
    assert llm.num_requests == 0


async def test_a_request_that_fails_in_the_core_raises_and_takes_its_siblings_with_it(
    start: Callable[..., Any],
) -> None:
    llm, client = await start(ScriptedCore(says("the cat " * 10), errors={1: "NaN logits"}))
    good = asyncio.create_task(collect(llm.generate("a", delta())))
    await until(lambda: client.core.added)
    with pytest.raises(RequestFailed, match="NaN logits"):
        await collect(llm.generate("b", delta(n=2)))
    assert client.core.aborted == [client.core.added[2].request_id]
    assert (await good)[-1].outputs[0].finish_reason == "length"


@pytest.mark.parametrize("fault", [EngineDead("killed"), RuntimeError("a bug in the client")])
async def test_when_the_core_dies_everyone_who_waits_is_told(start: Callable[..., Any], fault: Exception) -> None:
    llm, client = await start(ScriptedCore(says("the cat " * 20)))
    llm.check_health()
    client.pause()
    tasks = [asyncio.create_task(collect(llm.generate("a", delta()))) for _ in range(3)]
    await until(lambda: len(client.core.added) == 3)
    client.die(fault)
    for task in tasks:
        with pytest.raises(EngineDead):
            await asyncio.wait_for(task, 5)
    with pytest.raises(EngineDead):
        llm.check_health()
    with pytest.raises(EngineDead):
        await anext(llm.generate("a"))
    with pytest.raises(EngineDead):
        await llm.call("reset_prefix_cache")
    assert llm.num_requests == 0


async def test_closing_ends_running_requests_and_refuses_new_ones(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat " * 20)))
    stream = llm.generate("a", delta())
    await anext(stream)
    client.pause()
    rest = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    await llm.close()
    await llm.close()
    assert (await rest)[-1].outputs[0].finish_reason == "abort"
    assert not client.is_alive
    with pytest.raises(EngineDead):
        await anext(llm.generate("a"))
    with pytest.raises(EngineDead):
        llm.check_health()


async def test_an_engine_that_cannot_start_says_why_and_is_closed(start: Callable[..., Any], folder: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        await start(ScriptedCore(echo), fault=ConfigError("too long", field="max_model_len"))
    llm = AsyncLLM(EngineArgs(str(folder)))
    for use in (llm.check_health, lambda: llm.tokenizer, lambda: llm.ready, llm.default_sampling_params):
        with pytest.raises(EngineDead):
            use()


async def test_a_broken_tokenizer_stops_the_core_that_was_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").write_text("{")
    client = AsyncDouble(ScriptedCore(echo))
    monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: client)
    with pytest.raises(ConfigError, match="tokenizer"):
        await AsyncLLM(EngineArgs(str(folder))).start()
    assert client.closed == 1


async def test_the_models_defaults_and_control_calls_are_at_hand(start: Callable[..., Any]) -> None:
    llm, client = await start(ScriptedCore(says("the cat")))
    assert llm.default_sampling_params() == {"temperature": 0.25, "max_tokens": 7}
    assert llm.get_tokenizer() is llm.tokenizer
    assert llm.ready.max_model_len == 64
    assert await llm.call("reset_prefix_cache", 1) == ("reset_prefix_cache", (1,))
    await collect(llm.generate("a"))
    assert client.core.added[0].params.temperature == 0.25
    with pytest.raises(RuntimeError):
        await llm.start()


async def test_a_large_step_leaves_the_event_loop_free_in_between(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "4")
    llm, _ = await start(ScriptedCore(says("a")))
    slices: list[int] = []
    take = llm._outputs.take  # type: ignore[union-attr]
    monkeypatch.setattr(
        llm._outputs, "take", lambda updates, *rest: slices.append(len(updates)) or take(updates, *rest)
    )
    await collect(llm.generate("a", delta(n=10)))
    assert slices == [4, 4, 2]


async def test_a_step_that_takes_longer_than_it_may_is_the_end_of_the_engine(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ITERATION_TIMEOUT_S", "0.2")
    llm, client = await start(ScriptedCore(echo))
    await asyncio.sleep(0.5)
    await collect(llm.generate("no request is no step, however long it takes"))
    client.pause()
    begin = time.monotonic()
    with pytest.raises(EngineDead, match="no step of the engine has ended"):
        await collect(llm.generate("the cat"))
    assert 0.15 < time.monotonic() - begin < 10
    with pytest.raises(EngineDead):
        llm.check_health()


async def test_a_statistics_logger_that_fails_does_no_harm(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def on_step(self, *_: Any, **__: Any) -> None:
            raise ValueError("broken")

        def on_finished(self, _: Any) -> None:
            raise ValueError("broken")

    llm, _ = await start(ScriptedCore(says("the cat")), stat_loggers=[Broken()])
    with caplog.at_level(logging.ERROR):
        outputs = await collect(llm.generate("a", delta()))
    assert outputs[-1].finished
    assert "statistics logger failed" in caplog.text


async def test_requests_are_logged_without_their_text_when_asked(
    start: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    llm, _ = await start(ScriptedCore(says("the cat")), enable_log_requests=True)
    with caplog.at_level(logging.INFO):
        await collect(llm.generate("secret words", delta(temperature=0.75), "label"))
    (line,) = [record.getMessage() for record in caplog.records if "label" in record.getMessage()]
    assert "temperature=0.75" in line
    assert "secret" not in line


async def test_the_built_in_model_streams_what_it_answers_at_once() -> None:
    args = EngineArgs("demo", max_model_len=256, num_gpu_blocks_override=64)
    async with AsyncLLM(args, multiprocess=False) as llm:
        texts = []
        for kind in OutputKind:
            outputs = await collect(
                llm.generate("Once upon a time", delta(temperature=0, max_tokens=8, output_kind=kind))
            )
            if kind is OutputKind.DELTA:
                assert len(outputs) > 1
                texts.append("".join(output.outputs[0].text for output in outputs))
            else:
                texts.append(outputs[-1].outputs[0].text)
        assert len(set(texts)) == 1
        assert texts[0]


async def test_closing_while_the_model_is_looked_for_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: Any) -> Path:
        time.sleep(0.1)
        return Path("nowhere")

    created: list[int] = []
    monkeypatch.setattr("vllm_engine.async_llm.resolve_model_path", slow)
    monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: created.append(1))
    llm = AsyncLLM(EngineArgs("demo"))
    start = asyncio.create_task(llm.start())
    await asyncio.sleep(0.02)
    await llm.close()
    with pytest.raises(EngineDead):
        await start
    assert not created


async def test_closing_while_the_tokenizer_loads_ends_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ModelFrontend.load
    client = AsyncDouble(ScriptedCore(echo))
    monkeypatch.setattr(ModelFrontend, "load", lambda *arguments: (time.sleep(0.1), load(*arguments))[1])
    monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: client)
    llm = AsyncLLM(EngineArgs(str(folder)))
    start = asyncio.create_task(llm.start())
    await asyncio.sleep(0.02)
    await asyncio.gather(llm.close(), llm.close())
    with pytest.raises(EngineDead):
        await start
    assert client.closed
    with pytest.raises(EngineDead):
        llm.check_health()


async def test_a_start_that_is_cancelled_closes_the_core(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = AsyncDouble(ScriptedCore(echo))
    started = asyncio.Event()

    async def never_ready() -> None:
        started.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(client, "start", never_ready)
    monkeypatch.setattr(AsyncLLM, "_create_client", lambda *_: client)
    start = asyncio.create_task(AsyncLLM(EngineArgs(str(folder))).start())
    await started.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert client.closed == 1


@pytest.mark.slow
async def test_when_the_engine_process_is_killed_everyone_who_waits_is_told() -> None:
    async with AsyncLLM(EngineArgs("demo", max_model_len=2048, num_gpu_blocks_override=256)) as llm:
        stream = llm.generate("Once upon a time", delta(ignore_eos=True))
        await anext(stream)
        os.kill(llm._client.pid, signal.SIGKILL)  # type: ignore[union-attr]
        with pytest.raises(EngineDead):
            await asyncio.wait_for(collect(stream), 5)
        with pytest.raises(EngineDead):
            llm.check_health()


async def test_a_bounded_engine_takes_so_many_requests_and_refuses_the_others_at_once(
    start: Callable[..., Any],
) -> None:
    llm, client = await start(
        ScriptedCore(says("the cat")), bounded=True, max_num_queued_reqs=5, max_num_queued_tokens=0
    )
    client.pause()
    waiting = [asyncio.ensure_future(collect(llm.generate("a", delta(), f"id{i}"))) for i in range(3)]
    waiting.append(asyncio.ensure_future(collect(llm.generate("a", delta(n=2), "two"))))
    await until(lambda: len(client.core.added) == 5)
    with pytest.raises(Overloaded) as refused:
        await collect(llm.generate("a", delta(), "late"))
    assert refused.value.retry_after >= 1
    assert llm.num_requests == 4 and len(client.core.added) == 5
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    waiting.append(asyncio.ensure_future(collect(llm.generate("a", delta(), "late"))))
    client.resume()
    assert len(await asyncio.gather(*waiting[1:])) == 4
    assert llm.admission.num_requests == llm.admission.num_queued_tokens == 0
    assert llm.admission.num_rejected == {"max_num_queued_reqs": 1, "max_num_queued_tokens": 0}


async def test_a_bounded_engine_takes_no_prompts_behind_too_many_tokens(start: Callable[..., Any]) -> None:
    llm, client = await start(
        ScriptedCore(says("the cat")), bounded=True, max_num_queued_reqs=0, max_num_queued_tokens=10
    )
    client.pause()
    first = asyncio.ensure_future(collect(llm.generate({"prompt_token_ids": [1] * 20}, delta())))
    await until(lambda: client.core.added)
    with pytest.raises(Overloaded, match="max_num_queued_tokens"):
        await collect(llm.generate("a", delta()))
    client.resume()
    await first
    assert await collect(llm.generate("a", delta()))
    assert llm.admission.num_requests == llm.admission.num_queued_tokens == 0
