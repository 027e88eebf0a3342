"""The life of ``vllm run-batch``: open the files, start the engine, answer the lines, deliver the output."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm_engine.config import EngineConfig
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import get_logger
from vllm_server.batch.config import BatchConfig, answers_digest, server_config
from vllm_server.batch.errors import BatchFileError, TransferRefused
from vllm_server.batch.input import BatchInput, NumberedLine, open_input
from vllm_server.batch.journal import Journal, RunKey
from vllm_server.batch.output import open_output
from vllm_server.batch.url import is_url, shown_url
from vllm_server.config import load_chat_template, served_names
from vllm_server.running.lifecycle import check_chat_template, first
from vllm_server.running.stop_signals import StopSignals

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_server.telemetry.registry import Registry
    from vllm_server.telemetry.tracing import RequestTracer

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
    stderr tells where the answers so far are. The next run with the same input goes on after them.

    Raises:
        ConfigError: for a file or a setting that cannot be had; the files are checked before the model is touched.
        EngineDead: when the engine core ends before it is ready.
    """
    run = _Run(engine_config, config)
    try:
        with StopSignals() as signals:
            if await first(asyncio.create_task(run.complete()), signals.stop.wait()):
                return 0
        reason, code = "interrupted", INTERRUPTED
    except EngineDead as error:
        if not run.engine_was_ready:
            raise
        reason, code = f"error: the engine has died: {error}", 1
    except BatchFileError as error:
        reason, code = f"error: {error}", 1
    print(f"vllm run-batch: {reason}; {run.left_behind()}", file=sys.stderr)
    return code


class _Run:
    """One run, as far as it has come."""

    def __init__(self, engine_config: EngineConfig, config: BatchConfig) -> None:
        self.engine_was_ready = False
        self._engine_config = engine_config
        self._config = config
        self._journal: Journal | None = None

    def left_behind(self) -> str:
        """What a run that ended early leaves for the next."""
        if self._journal is None or not self._journal.num_answers:
            return "there is no answer yet"
        count = self._journal.num_answers
        return f"{count} answers are in {self._journal.path}, and the same command goes on after them"

    async def complete(self) -> None:
        """Make the output, and print what it holds. Raises what ``run_batch`` does, and ``BatchFileError``."""
        config = self._config
        chat_template = load_chat_template(config.chat_template)
        output = open_output(str(config.output_file), config.output_tmp_dir, not_over=str(config.input_file))
        with await _open_input(config) as source:
            await source.examine()
            key = RunKey(source.digest, answers_digest(self._engine_config, config, chat_template))
            with Journal(output.place, key) as journal:
                self._journal = journal
                lines = source.lines()
                await journal.resume(lines)
                if journal.num_answers:
                    told = f"{journal.num_answers} of {source.num_lines} answers are there from an earlier run"
                    print(f"vllm run-batch: {told}: {journal.path}", file=sys.stderr)
                if journal.num_answers < source.num_lines:
                    await self._answer(source, lines, journal, chat_template)
                await output.deliver(journal)
        print(f"{journal.num_answers} requests, {journal.num_failed} failed: {output.name}", flush=True)

    async def _answer(
        self, source: BatchInput, lines: Iterator[NumberedLine], journal: Journal, chat_template: str | None
    ) -> None:
        """Start the engine, and answer ``lines``, which are what of ``source`` the journal has not."""
        config = self._config
        from vllm_engine.async_llm import AsyncLLM
        from vllm_server.telemetry.metrics import EngineMetrics
        from vllm_server.telemetry.registry import new_registry
        from vllm_server.telemetry.tracing import create_tracer

        tracer = create_tracer(
            self._engine_config.observability.otlp_traces_endpoint, served_names(self._engine_config)[0]
        )
        registry = new_registry()
        metrics = []
        if not self._engine_config.engine.disable_log_stats:
            metrics = [EngineMetrics(served_names(self._engine_config)[0], self._engine_config)]
        for one in metrics:
            registry.register(one)
        with contextlib.ExitStack() as while_running:
            if config.enable_metrics:
                from vllm_server.batch.metrics import metrics_server

                while_running.enter_context(metrics_server(config.host or config.url, config.port, registry))
            llm = AsyncLLM(self._engine_config, multiprocess=True, stat_loggers=metrics, max_log_len=config.max_log_len)
            start = asyncio.create_task(llm.start())
            try:
                # In a thread, as for `vllm serve`: the web framework is imported while the engine loads the model.
                await asyncio.to_thread(importlib.import_module, "vllm_server.batch.work")
                await start
                self.engine_was_ready = True
                for one in metrics:
                    one.describe(llm.config, llm.ready)
                check_chat_template(llm, chat_template)
                await self._work(llm, source, lines, journal, chat_template, registry, tracer)
            finally:
                start.cancel()
                await asyncio.gather(start, return_exceptions=True)
                await llm.close()
                if tracer is not None:
                    await tracer.close()

    async def _work(
        self,
        llm: "AsyncLLM",
        source: BatchInput,
        lines: Iterator[NumberedLine],
        journal: Journal,
        chat_template: str | None,
        registry: "Registry",
        tracer: "RequestTracer | None",
    ) -> None:
        from vllm_server.app import build_app, json_urls
        from vllm_server.batch.progress import BatchProgress
        from vllm_server.batch.work import BatchWork
        from vllm_server.context import ServerContext
        from vllm_server.response_store import ResponseStore

        context = ServerContext(
            llm=llm,
            config=server_config(self._config),
            chat_template=chat_template,
            registry=registry,
            tracer=tracer,
            responses=ResponseStore(enabled=False),  # nobody can ask for them
        )
        in_flight = self._config.max_inflight
        if in_flight is None:
            max_num_seqs = llm.config.scheduler.max_num_seqs
            in_flight = _IN_FLIGHT if max_num_seqs is None else max_num_seqs * _IN_FLIGHT_PER_SEQ
        with BatchProgress(total=source.num_lines, done=journal.num_answers, failed=journal.num_failed) as progress:
            app = build_app(context)
            await BatchWork(app, llm, lines, journal, urls=json_urls(), in_flight=in_flight, tell=progress.count).run()


async def _open_input(config: BatchConfig) -> BatchInput:
    """The input, fetched if it is a URL. Raises ``ConfigError``, and ``BatchFileError`` for a URL that fails."""
    name = str(config.input_file)
    if not is_url(name):
        return open_input(name)
    from vllm_server.batch.transfer import fetch

    try:
        file = await fetch(name, config.output_tmp_dir)
    except TransferRefused as error:
        raise ConfigError(f"input_file: {error}", field="input_file") from error
    return BatchInput(shown_url(name), file)
