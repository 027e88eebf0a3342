"""One measurement of ``vllm bench serve``: the workload is made, sent and turned into a result."""

import asyncio
import itertools
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_bench import endpoints
from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.load.run import LoadRun, run_load
from vllm_bench.load.sender import Sender
from vllm_bench.measure.figures import load_figures, queue_figures
from vllm_bench.server_facts import ServedModel, ServerFacts
from vllm_bench.transport.client import HttpClient
from vllm_bench.workload import dataset
from vllm_bench.workload.arrivals import offsets
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.text import TextSource
from vllm_bench.workload.words import ServerCountedWords, UncountedWords
from vllm_cli.command import CommandError

_MADE_BEFOREHAND = 2000
_CHARACTERS_OF_A_TOKEN = 4


def measure(options: Namespace, body_options: dict[str, Any]) -> dict[str, Any]:
    """Do what the options say; returns the result under its documented keys.

    Raises:
        CommandError: the server is not there, or the workload cannot be made or sent.
    """
    base_url = (options.base_url or f"http://{options.host}:{options.port}").rstrip("/").removesuffix("/v1")
    with ServerFacts(base_url, options.api_key) as facts:
        model = facts.model(options.served_model_name or options.model)
        text = _text_source(options.tokenizer, facts, model.name)
        try:
            client = HttpClient(base_url, facts.headers)
        except ValueError as error:
            raise CommandError(str(error), exit_code=2) from error
        endpoint = endpoints.load(options.backend)
        sender = Sender(client, endpoint, options.endpoint or endpoint.path, model.name, body_options)
        items = _items(options, text)
        first = _check(next(items), endpoint, model)
        warm_ups = _warm_ups(first, options.num_warmups, text, options.seed)
        run = asyncio.run(_run(client, sender, warm_ups, itertools.chain([first], items), options))
    figures = load_figures(run, options.metric_percentiles)
    if options.max_concurrency is not None:
        figures |= queue_figures(run, options.metric_percentiles)
    return _header(options, model.name, text.name, len(run.records)) | figures


async def _run(
    client: HttpClient, sender: Sender, warm_ups: list[WorkItem], items: Iterator[WorkItem], options: Namespace
) -> LoadRun:
    limit = options.max_concurrency
    async with client:
        if warm_ups:
            await run_load(sender.send, iter(warm_ups), max_concurrency=limit)
        return await run_load(sender.send, items, max_concurrency=limit, seconds=options.duration)


def _header(options: Namespace, model: str, tokenizer: str, num_prompts: int) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": options.model or model,
        "tokenizer_id": tokenizer,
        "num_prompts": num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": "inf" if math.isinf(options.burstiness) else options.burstiness,
        "max_concurrency": options.max_concurrency,
        "seed": options.seed,
    }


def _text_source(tokenizer: Path | None, facts: ServerFacts, model: str) -> TextSource:
    """The best counter of tokens that there is."""
    if tokenizer is not None:
        from vllm_bench.workload.tokenizer_text import TokenizerText

        return TokenizerText(tokenizer)
    try:
        return ServerCountedWords(lambda text: facts.count_tokens(model, text))
    except LookupError:
        return UncountedWords()


def _items(options: Namespace, text: TextSource) -> Iterator[WorkItem]:
    """The workload with its moments. Most of it is made here and now: later, it would take the client's time."""
    count = None if options.duration is not None else options.num_prompts
    name = options.dataset_name if options.prompt_file is None else "prompt-file"
    prompts = dataset.load(name).items(options, text, generator(options.seed, "prompts"))
    moments = offsets(options.request_rate, options.burstiness, count, generator(options.seed, "arrivals"))
    items = (
        item if moment is None else replace(item, offset=moment) for item, moment in zip(prompts, moments, strict=False)
    )
    made = list(itertools.islice(items, _MADE_BEFOREHAND if count is None else count))
    return itertools.chain(made, items)


def _check(item: WorkItem, endpoint: Endpoint, model: ServedModel) -> WorkItem:
    """The first item, if it can be sent: what is wrong with it is wrong with all."""
    try:
        endpoint.body(item, model.name, {})
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error
    wanted = (item.prompt_len or 0) + (item.output_len or 0)
    if model.max_model_len is not None and wanted > model.max_model_len:
        raise CommandError(
            f"a prompt of {item.prompt_len or 0} tokens and an answer of {item.output_len or 0} do not fit into the "
            f"{model.max_model_len} of {model.name}; choose shorter ones, as with --input-len and --output-len",
            exit_code=2,
        )
    return item


def _warm_ups(like: WorkItem, count: int, text: TextSource, seed: int) -> list[WorkItem]:
    """Requests of the same size as one of the run; their prompts are others, which the server could have cached."""
    rng = generator(seed, "warm-ups")
    size = like.prompt_len or max(1, len(str(like.prompt)) // _CHARACTERS_OF_A_TOKEN)
    return [WorkItem(text.make(size, rng).text, output_len=like.output_len, extra=like.extra) for _ in range(count)]
