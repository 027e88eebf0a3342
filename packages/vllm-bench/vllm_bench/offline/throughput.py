"""How fast many requests go through the engine when all are there from the begin."""

import asyncio
import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vllm_bench.offline.answers import count_tokens, engine_errors
from vllm_bench.offline.model import OfflineModel, look_up
from vllm_bench.offline.requests import Conversation, OfflineRequests, check_items, requests_of
from vllm_bench.workload import dataset
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.seeds import generator

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_engine.frontend.prompts import Prompt
    from vllm_engine.frontend.tokenizer import Tokenizer
    from vllm_engine.outputs import CompletionOutput, RequestOutput
    from vllm_engine.params import SamplingParams

CHAT = "vllm-chat"
"""The ``--backend`` that takes conversations."""


def measure_throughput(options: Namespace, engine: dict[str, Any]) -> dict[str, Any]:
    """Do what the options of ``vllm bench throughput`` say; returns the result under its documented keys.

    The clock runs from the call of the engine, so that tokenizing the prompts is in it, until the last token.

    Raises:
        CommandError: the workload cannot be made or does not fit into the model, or the engine fails.
        ConfigError: a setting of the engine that cannot be honoured.
    """
    model = look_up(engine)
    items, warm_ups = _workload(options, model)

    def requests(items: list[WorkItem], tokenizer: Callable[[], "Tokenizer"]) -> OfflineRequests:
        return requests_of(
            items,
            chat=options.backend == CHAT,
            n=options.n,
            detokenize=not options.disable_detokenize,
            stream=options.async_engine,
            render=lambda messages: _render(tokenizer(), messages),
        )

    if options.async_engine:
        from vllm_server.running.event_loop import loop_factory

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            seconds, outputs, wanted = runner.run(_time_async(engine, items, warm_ups, requests))
    else:
        seconds, outputs, wanted = _time(engine, items, warm_ups, requests)
    tokens = count_tokens(outputs, wanted)
    total = tokens.prompt + tokens.output
    return {
        "model_id": model.name,
        "elapsed_time": seconds,
        "num_requests": len(items),
        "total_num_tokens": total,
        "requests_per_second": len(items) / seconds,
        "tokens_per_second": total / seconds,
        "output_tokens_per_second": tokens.output / seconds,
        "total_input_tokens": tokens.prompt,
        "total_output_tokens": tokens.output,
        "backend": options.backend,
        "async_engine": options.async_engine,
        "dataset_name": options.dataset_name,
        "n": options.n,
        "num_warmups": len(warm_ups),
        "seed": model.seed,
    }


def throughput_lines(result: dict[str, Any]) -> list[str]:
    """The same figures for reading."""
    return [
        f"requests                  {result['num_requests']}",
        f"prompt tokens             {result['total_input_tokens']}",
        f"output tokens             {result['total_output_tokens']}",
        f"duration                  {result['elapsed_time']:.3f} s",
        f"request throughput        {result['requests_per_second']:.2f} /s",
        f"output token throughput   {result['output_tokens_per_second']:.1f} /s",
        f"total token throughput    {result['tokens_per_second']:.1f} /s",
    ]


_Make = Callable[[list[WorkItem], Callable[[], "Tokenizer"]], OfflineRequests]
_Timed = tuple[float, "Sequence[RequestOutput]", list[int | None]]


def _workload(options: Namespace, model: OfflineModel) -> tuple[list[WorkItem], list[WorkItem]]:
    """The items to measure, and those before them, which are others of the same dataset."""
    text = model.text_source()
    data = dataset.load(options.dataset_name)

    def made(count: int, purpose: str) -> list[WorkItem]:
        items = list(itertools.islice(data.items(options, text, generator(model.seed, purpose)), count))
        check_items(items)
        for item in items:
            model.check_length(item.prompt_len or 1, item.output_len or 1)
        return items

    return made(options.num_prompts, "prompts"), made(options.num_warmups, "warm-ups")


def _render(tokenizer: "Tokenizer", messages: Conversation) -> str:
    from vllm_engine.frontend.chat_template import render_chat

    return render_chat(tokenizer, messages, add_generation_prompt=True)


def _time(engine: dict[str, Any], items: list[WorkItem], warm_ups: list[WorkItem], make: _Make) -> _Timed:
    from vllm_engine.llm import LLM

    with LLM(**engine) as llm, engine_errors():

        def answer(requests: OfflineRequests, *, use_tqdm: bool) -> "list[RequestOutput]":
            if requests.conversations:
                return llm.chat(requests.conversations, requests.params, use_tqdm=use_tqdm)
            return llm.generate(requests.prompts, requests.params, use_tqdm=use_tqdm)

        before, measured = make(warm_ups, llm.get_tokenizer), make(items, llm.get_tokenizer)
        if warm_ups:
            answer(before, use_tqdm=False)
        began = time.perf_counter()
        outputs = answer(measured, use_tqdm=sys.stderr.isatty())
        return time.perf_counter() - began, outputs, measured.wanted_lengths


async def _time_async(engine: dict[str, Any], items: list[WorkItem], warm_ups: list[WorkItem], make: _Make) -> _Timed:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_engine.config import EngineArgs

    llm = AsyncLLM(EngineArgs(**engine))
    try:
        await llm.start()
        with engine_errors():
            before, measured = make(warm_ups, llm.get_tokenizer), make(items, llm.get_tokenizer)
            await _answer_all(llm, before)
            began = time.perf_counter()
            outputs = await _answer_all(llm, measured)
            return time.perf_counter() - began, outputs, measured.wanted_lengths
    finally:
        await llm.close()


async def _answer_all(llm: "AsyncLLM", requests: OfflineRequests) -> "list[RequestOutput]":
    pairs = zip(requests.prompts, requests.params, strict=True)
    return await asyncio.gather(*(_answer(llm, prompt, params) for prompt, params in pairs))


async def _answer(llm: "AsyncLLM", prompt: "Prompt", params: "SamplingParams") -> "RequestOutput":
    """The whole answer; what is new comes with each step, as it does for a client that reads a stream."""
    parts = [output async for output in llm.generate(prompt, params)]
    completions: dict[int, CompletionOutput] = {}
    for completion in (completion for part in parts for completion in part.outputs):
        known = completions.setdefault(completion.index, completion)
        if known is not completion:
            known.token_ids += completion.token_ids
            known.finish_reason = completion.finish_reason
    parts[-1].outputs = list(completions.values())
    return parts[-1]
