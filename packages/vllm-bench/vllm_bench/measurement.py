"""One measurement of ``vllm bench serve``: the workload is made, sent and turned into a result."""

import asyncio
import itertools
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_bench import endpoints
from vllm_bench.endpoints.endpoint import Endpoint
from vllm_bench.load.progress import Progress
from vllm_bench.load.run import LoadRun
from vllm_bench.load.sender import Sender
from vllm_bench.load.supervised import supervised_run
from vllm_bench.measure.figures import load_figures, queue_figures
from vllm_bench.measure.output_check import output_check
from vllm_bench.measure.pooling import pooling_figures
from vllm_bench.measure.run_intervals import run_intervals
from vllm_bench.result.detailed import always_kept, detailed
from vllm_bench.result.fingerprint import fingerprint, without_secrets
from vllm_bench.result.metadata import metadata
from vllm_bench.result.partial import partial_facts
from vllm_bench.result.plot_options import draws
from vllm_bench.server_facts import ServedModel, ServerFacts
from vllm_bench.transport.client import HttpClient
from vllm_bench.transport.event_loop import loop_factory
from vllm_bench.transport.tls import client_context
from vllm_bench.workload.batches import num_requests
from vllm_bench.workload.build import build
from vllm_bench.workload.item import WorkItem
from vllm_bench.workload.ramp_up import RampUp, change_events
from vllm_bench.workload.seeds import generator
from vllm_bench.workload.text import TextSource
from vllm_bench.workload.warm_ups import warm_ups
from vllm_bench.workload.words import ServerCountedWords, UncountedWords
from vllm_cli.command import CommandError

_MOST_CONNECTIONS_BEFOREHAND = 1024
_CONNECTIONS_OF_AN_OPEN_LOOP = 32


def measure(options: Namespace, body_options: dict[str, Any]) -> dict[str, Any]:
    """Do what the options say; returns the result under its documented keys, with details where a picture needs them.

    Raises:
        CommandError: the server is not there, or the workload cannot be made or sent.
    """
    base_url = (options.base_url or f"http://{options.host}:{options.port}").rstrip("/").removesuffix("/v1")
    try:
        tls = client_context(verify=not options.insecure) if base_url.startswith("https://") else None
        facts = ServerFacts(base_url, options.api_key, dict(options.header), tls)
        client = HttpClient(base_url, facts.headers, tls)
    except (OSError, ValueError) as error:
        raise CommandError(str(error), exit_code=2) from error
    with facts:
        facts.wait(options.ready_check_timeout_sec)
        model = facts.model(options.served_model_name or options.model)
        text = UncountedWords() if options.skip_tokenizer_init else _text_source(options.tokenizer, facts, model.name)
        endpoint = endpoints.load(options.backend)
        path = options.endpoint or endpoint.path
        sender = Sender(client, endpoint, path, model.name, body_options, options.request_id_prefix)
        made, rest = build(options, text, lambda messages: facts.render(model.name, messages))
        first = _check(made[0], endpoint, model)
        of_user = metadata(options.metadata, _result(options, model.name, endpoint, text, LoadRun()))
        sender.prepare(made)
        before = warm_ups(first, options.num_warmups, text, generator(options.seed, "warm-ups"))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            run = runner.run(_run(client, sender, before, itertools.chain(made, rest), options))
        sender.read_rest()
        if run.hopeless:
            raise CommandError(run.stopped or "", exit_code=2)
        version = facts.version()
    result = _result(options, model.name, endpoint, text, run, version) | of_user
    return without_secrets(result, facts.secrets)


def _result(
    options: Namespace, model: str, endpoint: Endpoint, text: TextSource, run: LoadRun, version: str | None = None
) -> dict[str, Any]:
    """All of it; ``version`` is the server's."""
    result = _header(options, model, text.name, len(run.records)) | partial_facts(run)
    result |= _figures(options, run, endpoint, text) | _ramp_up(options, run)
    result["fingerprint"] = fingerprint(options, version)
    return result | always_kept(run) | (detailed(run) if options.save_detailed or draws(options) else {})


def _figures(options: Namespace, run: LoadRun, endpoint: Endpoint, text: TextSource) -> dict[str, Any]:
    percents, limits = options.metric_percentiles, dict(options.goodput or [])
    if endpoint.generates:
        figures = load_figures(run, percents, limits)
        done = [record for record in run.records if record.error is None]
        count = text.count if options.tokenizer is not None else None
        figures |= output_check(done, count, fixed_length=options.ignore_eos)
    else:
        figures = pooling_figures(run, percents)
    if options.max_concurrency is not None:
        figures |= queue_figures(run, percents)
    return figures | run_intervals(run, percents, figures, limits)


async def _run(
    client: HttpClient, sender: Sender, before: list[WorkItem], items: Iterator[WorkItem], options: Namespace
) -> LoadRun:
    limit = options.max_concurrency
    async with client:
        if before:
            run = await supervised_run(sender.send, iter(before), max_concurrency=limit)
            sender.read_rest()
            _check_warm_ups(run)
        await client.open(_connections(options))
        progress = None if options.disable_tqdm else Progress(num_requests(options), options.duration)
        return await supervised_run(
            sender.send, items, max_concurrency=limit, seconds=options.duration, progress=progress
        )


def _check_warm_ups(run: LoadRun) -> None:
    """End the program where the warm-ups were interrupted, or none of them came to its end."""
    if run.signal_number is not None:
        raise SystemExit(128 + run.signal_number)
    if all(record.error is not None for record in run.records):
        reason = run.stopped or run.records[0].error
        raise CommandError(f"no warm-up request was completed: {reason}", exit_code=2 if run.hopeless else 1)


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
        "dataset_name": options.dataset_name if options.prompt_file is None else "prompt-file",
        "self_timed": options.self_timed,
    }


def _ramp_up(options: Namespace, run: LoadRun) -> dict[str, Any]:
    """How the rate grew, as far as the run came; nothing where it did not."""
    ramp = RampUp.of(options)
    if ramp is None:
        return {}
    began = time.time() - (time.perf_counter() - run.began)
    last = max((record.arrival - run.began for record in run.records), default=0.0)
    return {
        "ramp_up_strategy": ramp.strategy,
        "ramp_up_start_rps": ramp.start,
        "ramp_up_end_rps": ramp.end,
        "rps_change_events": change_events(ramp.changes(last), began),
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


def _connections(options: Namespace) -> int:
    """Connections to open before the clock starts: as many requests as will be under way, so far as that is known."""
    requests = num_requests(options) or _MOST_CONNECTIONS_BEFOREHAND
    expected = options.max_concurrency or _MOST_CONNECTIONS_BEFOREHAND
    if not math.isinf(options.request_rate):
        expected = min(expected, _CONNECTIONS_OF_AN_OPEN_LOOP)
    return min(requests, expected, _MOST_CONNECTIONS_BEFOREHAND)


def _check(item: WorkItem, endpoint: Endpoint, model: ServedModel) -> WorkItem:
    """The first item, if it can be sent: what is wrong with it is wrong with all."""
    try:
        endpoint.body(item, model.name, {})
    except ValueError as error:
        raise CommandError(str(error), exit_code=2) from error
    if not endpoint.generates:
        return item  # of several texts, each may be as long as the model takes
    wanted = (item.prompt_len or 0) + (item.output_len or 0)
    if model.max_model_len is not None and wanted > model.max_model_len:
        raise CommandError(
            f"a prompt of {item.prompt_len or 0} tokens and an answer of {item.output_len or 0} do not fit into the "
            f"{model.max_model_len} of {model.name}; choose shorter ones, as with --input-len and --output-len",
            exit_code=2,
        )
    return item
