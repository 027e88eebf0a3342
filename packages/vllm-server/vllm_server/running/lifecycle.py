"""The life of ``vllm serve``: start the engine, serve, stop in good order."""

import asyncio
import contextlib
import gc
import importlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from vllm_engine.config import EngineConfig
from vllm_engine.errors import ConfigError, InvalidRequest
from vllm_engine.logging import get_logger, startup_phase
from vllm_server.config import ServerConfig, load_chat_template, served_names
from vllm_server.running.announcement import announce, example_of
from vllm_server.running.ending import serve_until_the_end
from vllm_server.running.one_of_several import OneOfSeveral
from vllm_server.running.stop_signals import StopSignals
from vllm_server.running.tls import create_tls, refreshed
from vllm_server.telemetry.snapshot import encode
from vllm_server.telemetry.tracing import create_tracer

if TYPE_CHECKING:
    from vllm_engine.async_llm import AsyncLLM
    from vllm_server.telemetry.registry import Registry

logger = get_logger(__name__)

KEEP_SECONDS = 1.0
"""How often one of several processes keeps its counts: at most those of so long are lost when it is killed."""
OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""What a step makes for some dozen streams is gone with the next one: most of it before anybody looks through it."""


async def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    listener: socket.socket,
    one: OneOfSeveral | None = None,
) -> int:
    """Serve on ``listener`` until a signal comes or the engine dies. Returns the exit code: 0, or 1 for a death.

    With ``VLLM_KEEP_ALIVE_ON_ENGINE_DEATH`` it serves on after a death, until a signal comes. The engine core is
    started first of all; the web framework is imported while it loads the model. ``one`` is the place of this process
    where several serve one port: then the core is there already, and somebody else tells when to stop.

    Raises:
        ConfigError: for a setting that the engine cannot honour.
        EngineDead: when the engine core ends before it is ready.
    """
    launched = time.perf_counter()
    chat_template = load_chat_template(server_config.chat_template)
    tracer = create_tracer(engine_config.observability.otlp_traces_endpoint, served_names(engine_config)[0])
    tls = create_tls(server_config)
    if server_config.middleware:
        from vllm_server.access.user_middleware import load_middleware

        load_middleware(server_config.middleware)  # what cannot be imported is told before the model is touched
    with StopSignals() if one is None else one.signals as signals:
        with startup_phase(logger, "frontend imports", {}):
            from vllm_engine.async_llm import AsyncLLM
            from vllm_server.telemetry.admission_metrics import AdmissionMetrics
            from vllm_server.telemetry.metrics import EngineMetrics
            from vllm_server.telemetry.registry import new_registry

        registry = new_registry()
        if one is not None:
            registry.go_on_from(one.told_counts, one.siblings.own)
        name = served_names(engine_config)[0]
        metrics = [] if engine_config.engine.disable_log_stats else [EngineMetrics(name, engine_config)]
        for source in metrics:
            registry.register(source)
        llm = AsyncLLM(
            engine_config,
            multiprocess=not server_config.disable_frontend_multiprocessing,
            stat_loggers=metrics,
            max_log_len=server_config.max_log_len,
            bounded=True,
            core=None if one is None else one.core,
            tallies=None if one is None else (one.counts.tally("requests"), one.counts.tally("tokens")),
        )
        if metrics:
            registry.register(AdmissionMetrics(llm, name))
        try:
            start = asyncio.create_task(llm.start())
            # In a thread, because importing takes a third of a second, and the engine's process is launched meanwhile.
            with startup_phase(logger, "web framework", {}):
                await asyncio.to_thread(importlib.import_module, "vllm_server.running.web")
            from vllm_server.running.web import ResponseStore, ServerContext, build_app, create_server

            if not await first(start, signals.stop.wait()):
                return 0
            for source in metrics:
                source.describe(llm.config, llm.ready)
            with startup_phase(logger, "listening", {}):
                check_chat_template(llm, chat_template)
                context = ServerContext(
                    llm=llm,
                    config=server_config,
                    chat_template=chat_template,
                    registry=registry,
                    tracer=tracer,
                    siblings=None if one is None else one.siblings,
                    counts=None if one is None else one.counts,
                    told_counts=None if one is None else one.told_counts,
                    responses=ResponseStore.from_environment(None if one is None else one.siblings.own),
                )
                server = create_server(
                    build_app(context),
                    server_config,
                    engine_config.engine.shutdown_timeout,
                    tls=tls.context if tls is not None else None,
                )
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                while not server.started and not serving.done():
                    await asyncio.sleep(0.005)
                if serving.done():
                    raise ConfigError(f"port: cannot listen: {serving.exception()}", field="port")
            if one is None:
                announce(example_of(context), server_config, engine_config, listener, time.perf_counter() - launched)
            else:
                await one.siblings.listen(
                    {
                        "metrics": lambda _: encode(registry.snapshot()),
                        "load": lambda _: b"%d" % len(context.in_flight),
                        "response": lambda response_id: context.responses.shared(response_id.decode()),
                    }
                )
                one.tell_listening(*example_of(context))
            gc.freeze()  # a collection of all objects would stop every stream to go through those of the start again
            gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
            async with refreshed(tls, server_config), counts_kept(registry, one):
                return await serve_until_the_end(
                    serving,
                    server,
                    context.in_flight,
                    llm,
                    signals,
                    engine_config.engine.shutdown_timeout,
                    stay=None if one is None else one.stay,
                )
        finally:
            await llm.close()
            if tracer is not None:
                await tracer.close()


@contextlib.asynccontextmanager
async def counts_kept(registry: "Registry", one: OneOfSeveral | None) -> AsyncIterator[None]:
    """Within, what this process counts is kept for the one that follows it, should it be killed."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            registry.snapshot()

    task = None if one is None else asyncio.create_task(keep())
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def first(wanted: "asyncio.Task[Any]", interruption: Awaitable[Any]) -> bool:
    """Whether ``wanted`` came first; then its error is raised, if it has one. Otherwise it is cancelled."""
    other = asyncio.ensure_future(interruption)
    try:
        await asyncio.wait((wanted, other), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            wanted.result()
            return True
        wanted.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await wanted
        return False
    finally:
        other.cancel()


def check_chat_template(llm: "AsyncLLM", chat_template: str | None) -> None:
    """Raises ``ConfigError`` for a template that cannot even render a greeting, or a model's that does not compile."""
    if llm.tokenizer is None or (chat_template is None and not llm.tokenizer.chat_templates):
        return
    from vllm_engine.frontend.chat_template import render_chat

    try:
        render_chat(llm.tokenizer, [{"role": "user", "content": "Hello"}], chat_template=chat_template)
    except ConfigError as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"in the model's files, {reason}; chat_template names another", field="chat_template"
        ) from error
    except InvalidRequest as error:
        if chat_template is not None and error.field == "chat_template":
            raise ConfigError(f"chat_template: {error}", field="chat_template") from error
