"""The life of ``vllm run-batch``: check the files, start the engine, run the lines, give the output its name."""

import asyncio
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

from vllm_engine.config import EngineConfig
from vllm_engine.errors import EngineDead
from vllm_engine.logging import get_logger
from vllm_server.batch_config import BatchConfig, server_config
from vllm_server.batch_files import BatchFileError, BatchInput, BatchOutput
from vllm_server.batch_metrics import metrics_server
from vllm_server.config import load_chat_template, served_names
from vllm_server.lifecycle import check_chat_template, first
from vllm_server.stop_signals import StopSignals

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from vllm_engine.async_llm import AsyncLLM
    from vllm_server.batch_work import BatchWork

logger = get_logger(__name__)

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

_IN_FLIGHT_PER_SEQ = 2
"""Requests in flight for each that the engine runs at once: the next are prepared before a place is free."""
_IN_FLIGHT = 512
"""The same where the engine chooses how many it runs."""


async def run_batch(engine_config: EngineConfig, config: BatchConfig) -> int:
    """Answer every line of the input. Returns the exit code: 0 when the output is complete, whatever its answers are.

    1 means that the engine died or a file failed, 130 that a signal came: then there is no output, and a line on
    stderr tells where the answers so far are.

    Raises:
        ConfigError: for a file or a setting that cannot be had; the files are checked before the model is touched.
        EngineDead: when the engine core ends before it is ready.
    """
    chat_template = load_chat_template(config.chat_template)
    with (
        BatchInput(str(config.input_file)) as source,
        BatchOutput(str(config.output_file), config.output_tmp_dir, not_over=source.path) as output,
        StopSignals() as signals,
        contextlib.ExitStack() as while_running,
    ):
        from vllm_engine.async_llm import AsyncLLM
        from vllm_server.metrics import EngineMetrics, new_registry

        registry = new_registry()
        metrics = [] if engine_config.engine.disable_log_stats else [EngineMetrics(served_names(engine_config)[0])]
        for collector in metrics:
            registry.register(collector)
        if config.enable_metrics:
            while_running.enter_context(metrics_server(config.url, config.port, registry))
        llm = AsyncLLM(engine_config, multiprocess=True, stat_loggers=metrics, max_log_len=config.max_log_len)
        try:
            start = asyncio.create_task(llm.start())
            # In a thread, as for `vllm serve`: the web framework is imported while the engine loads the model.
            await asyncio.to_thread(importlib.import_module, "vllm_server.batch_work")
            if not await first(start, signals.stop.wait()):
                print("vllm run-batch: interrupted before the first request", file=sys.stderr)
                return INTERRUPTED
            check_chat_template(llm, chat_template)
            progress = while_running.enter_context(_progress_bar(source))
            work = _prepare(llm, config, chat_template, registry, source, output, progress)
            return await _run(work, output, signals, progress)
        finally:
            await llm.close()


def _prepare(
    llm: "AsyncLLM",
    config: BatchConfig,
    chat_template: str | None,
    registry: "CollectorRegistry",
    source: BatchInput,
    output: BatchOutput,
    progress: "tqdm[None]",
) -> "BatchWork":
    from vllm_server.app import build_app
    from vllm_server.batch_work import BatchWork
    from vllm_server.context import ServerContext

    context = ServerContext(llm=llm, config=server_config(config), chat_template=chat_template, registry=registry)
    max_num_seqs = llm.config.scheduler.max_num_seqs
    in_flight = _IN_FLIGHT if max_num_seqs is None else max_num_seqs * _IN_FLIGHT_PER_SEQ
    return BatchWork(build_app(context), llm, source, output, in_flight=in_flight, tell=progress.update)


async def _run(work: "BatchWork", output: BatchOutput, signals: StopSignals, progress: "tqdm[None]") -> int:
    """The exit code, after the one line that says how it ended."""
    reason, code = "interrupted", INTERRUPTED
    try:
        if await first(asyncio.create_task(work.run()), signals.stop.wait()):
            output.commit()
            progress.close()
            print(f"{work.done} requests, {work.failed} failed: {output.path}", flush=True)
            return 0
    except EngineDead as error:
        reason, code = f"error: the engine has died: {error}", 1
    except BatchFileError as error:
        reason, code = f"error: {error}", 1
    progress.close()
    left = f"{work.done} answers are in {output.partial}" if work.done else "there is no answer yet"
    print(f"vllm run-batch: {reason}; {left}", file=sys.stderr)
    return code


def _progress_bar(source: BatchInput) -> "tqdm[None]":
    """A bar on stderr, where that is a terminal."""
    shown = sys.stderr.isatty()
    return tqdm(total=source.count_lines() if shown else None, desc="Requests", unit="request", disable=not shown)
