"""``AsyncLLM``: the engine for programs with an event loop, such as the server. Its core runs beside it."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_engine import envs
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.errors import EngineDead, InvalidRequest, RequestFailed
from vllm_engine.frontend.admission import Admission
from vllm_engine.frontend.core_watch import CoreWatch
from vllm_engine.frontend.delivery import Delivery
from vllm_engine.frontend.engine_frontend import ModelFrontend, resolve_config, resolve_model_path
from vllm_engine.frontend.held_logprobs import HeldLogprobs, Holding
from vllm_engine.frontend.input_processor import InputProcessor, PreparedRequest, check_params
from vllm_engine.frontend.output_processor import OutputProcessor
from vllm_engine.frontend.output_queue import OutputQueue
from vllm_engine.frontend.profiles import check_started, check_stopped
from vllm_engine.frontend.prompts import Prompt
from vllm_engine.frontend.renderer_threads import RendererThreads
from vllm_engine.frontend.request_log import RequestLog
from vllm_engine.frontend.sleeping import check_can_sleep, check_sleep, check_tags
from vllm_engine.frontend.tally import Tally
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.frontend.turn_share import TurnShare
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineReady, SchedulerStats
from vllm_engine.metrics.logging_stats import LoggingStatLogger
from vllm_engine.metrics.stats import StatLogger
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind, SamplingParams

if TYPE_CHECKING:
    from vllm_engine.core.clients.attached import AttachedClient, CoreAddress
    from vllm_engine.core.clients.process import ProcessClient
    from vllm_engine.core.clients.thread import ThreadClient

    CoreClient = ProcessClient | ThreadClient | AttachedClient

logger = get_logger(__name__)

T = TypeVar("T")

LONG_TEXT_CHARS = 8192
"""A prompt longer than this is tokenized in a thread."""
TURN_CHARS = 16384
"""Of shorter ones, so much is tokenized in one turn of the event loop."""
MAX_HELD_LOGPROBS = 1 << 22
"""Most log-probabilities that a server holds: some 1.7 GB. One answer of 128k tokens with the best 20 fits."""


class AsyncLLM:
    """An engine whose requests run side by side in one event loop.

    ``await start()`` before anything else, ``await close()`` at the end, or ``async with``. One task takes the core's
    outputs and hands them to the consumers (``Delivery``); one that falls behind gets what it missed in one piece.
    """

    def __init__(
        self,
        args: EngineArgs | EngineConfig,
        *,
        multiprocess: bool = True,
        stat_loggers: Sequence[StatLogger] = (),
        max_log_len: int | None = None,
        bounded: bool = False,
        core: "CoreAddress | None" = None,
        tallies: tuple[Tally, Tally] | None = None,
    ) -> None:
        """Check the settings; nothing is loaded yet.

        Args:
            args: the settings.
            multiprocess: run the core in a process of its own, else in a thread.
            stat_loggers: are told of every step and every finished request.
            max_log_len: most characters, and most token ids, of a prompt in the log of requests; None is no limit.
            bounded: refuse requests that would wait behind more than ``max_num_queued_reqs`` and
                ``max_num_queued_tokens`` say, or hold more than ``MAX_HELD_LOGPROBS``, which is for servers; else any
                number may wait, and hold what it likes.
            core: a core that another process holds, in place of one of its own; the settings must be those of it.
            tallies: of requests and of tokens that wait, shared by those who have the core; the bounds hold for all.
        """
        self.config: EngineConfig = resolve_config(args)
        self._bounded = bounded
        self._multiprocess = multiprocess
        self._core = core
        self._tallies = tallies or (None, None)
        self._stat_loggers = list(stat_loggers)
        if not self.config.engine.disable_log_stats:
            self._stat_loggers.append(LoggingStatLogger())
        self._request_log = RequestLog(max_log_len) if self.config.async_engine.enable_log_requests else None
        self._renderers = RendererThreads(self.config.model.renderer_num_workers)
        self._tokenizing = TurnShare(TURN_CHARS)
        self._model: ModelFrontend | None = None
        self._ready: EngineReady | None = None
        self._client: CoreClient | None = None
        self._inputs: InputProcessor | None = None
        self._outputs: OutputProcessor | None = None
        self.held_logprobs = HeldLogprobs(MAX_HELD_LOGPROBS if bounded else None)
        """Of answers that nobody has taken yet."""
        self.admission: Admission | None = None
        """What runs and waits, where that has bounds."""
        self._output_task: asyncio.Task[None] | None = None
        self._watch: CoreWatch | None = None
        self._num_worker_calls = 0  # under way
        self._delivery = Delivery(self._stat_loggers, slice_updates=envs.get("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE"))
        self._step_seconds: float | None = envs.get("VLLM_ENGINE_ITERATION_TIMEOUT_S")
        self._aborted_early: set[str] = set()
        self._death: EngineDead | None = None

    # ---- life ----

    async def start(self) -> None:
        """Load the model. The tokenizer loads meanwhile.

        Raises:
            ConfigError: for a setting that cannot be honoured.
            EngineDead: when the core cannot start.
        """
        if self._client is not None or self._death is not None:
            raise RuntimeError("an AsyncLLM starts once")
        if self._core is None:
            model_path = await asyncio.to_thread(resolve_model_path, self.config)
        else:
            model_path = Path(self._core.model_path)
        self._check_not_closed()
        client = self._client = self._create_client(model_path)
        try:
            loading = asyncio.create_task(client.start())
            try:
                self._model = await asyncio.to_thread(ModelFrontend.load, self.config, model_path)
                self._ready = await loading
                self._check_not_closed()
            finally:
                loading.cancel()
        except BaseException as error:
            self._death = self._death or EngineDead("the engine did not start")
            await client.aclose()
            # A core that failed in the same moment must not leave an unread error behind.
            await asyncio.gather(loading, return_exceptions=True)
            raise error
        self._inputs, self._outputs = self._model.processors(self.config, self._ready)
        if self._bounded:
            requests, tokens = self._tallies
            self.admission = Admission(
                self.config.scheduler, self._ready.max_num_seqs, requests=requests, tokens=tokens
            )
        self._output_task = asyncio.create_task(self._deliver_outputs(client, self._outputs), name="engine-outputs")
        self._watch = CoreWatch(
            client,
            self._delivery,
            self._outputs,
            step_seconds=self._step_seconds,
            has_worker_calls=lambda: self._num_worker_calls > 0,
            on_dead=self._die,
        )

    def _create_client(self, model_path: Path) -> "CoreClient":
        from vllm_engine.core.clients.attached import AttachedClient
        from vllm_engine.core.clients.process import ProcessClient
        from vllm_engine.core.clients.thread import ThreadClient

        if self._core is not None:
            return AttachedClient(self.config, model_path, self._core)
        return ProcessClient(self.config, model_path) if self._multiprocess else ThreadClient(self.config, model_path)

    async def close(self) -> None:
        """End the engine; consumers that wait get a last output with ``finish_reason`` ``abort``."""
        if self._death is None:
            self._death = EngineDead("the engine is closed")
            if self._outputs is not None:
                self._delivery.deliver(self._outputs.abort_all()[1])
        self._renderers.close()
        if self._watch is not None:
            self._watch.stop()
        if self._output_task is not None:
            self._output_task.cancel()
            await asyncio.gather(self._output_task, return_exceptions=True)
            self._output_task = None
        if self._client is not None:
            await self._client.aclose()

    def _check_not_closed(self) -> None:
        """Whether ``start`` may go on. Raises ``EngineDead`` when ``close`` was called meanwhile."""
        if self._death is not None:
            raise self._death

    async def __aenter__(self) -> "AsyncLLM":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- what is known of the engine ----

    @property
    def ready(self) -> EngineReady:
        """What the core told when it had loaded. Raises ``EngineDead`` before ``start``."""
        if self._ready is None:
            raise EngineDead("the engine is not started")
        return self._ready

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None with ``skip_tokenizer_init``. Raises ``EngineDead`` before ``start``."""
        return self._loaded.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InvalidRequest: when the engine runs without one.
        """
        if self.tokenizer is None:
            raise InvalidRequest("this engine runs without a tokenizer")
        return self.tokenizer

    def default_sampling_params(self) -> dict[str, Any]:
        """Fields of ``SamplingParams`` that hold where a request gives none."""
        return self._loaded.default_sampling_params()

    async def in_renderer(self, work: Callable[[], T], *, size: int = 0) -> T:
        """Do work that would hold up the event loop, such as rendering much text, in a thread for that.

        There are ``renderer_num_workers``; long prompts are tokenized in the same ones. Raises ``EngineDead`` when the
        engine is closed. ``size``: characters or tokens that it is about.
        """
        return await self._renderers.run(work, size=size)

    @property
    def num_requests(self) -> int:
        """Requests that are being served, queued ones included."""
        return len(self._delivery.queues)

    @property
    def scheduler_stats(self) -> SchedulerStats:
        """State of the scheduler after the last step."""
        return self._delivery.scheduler_stats

    @property
    def _loaded(self) -> ModelFrontend:
        if self._model is None:
            raise EngineDead("the engine is not started")
        return self._model

    @property
    def asleep(self) -> bool:
        """Whether ``sleep`` has been called, here or by another client, and not ``wake_up`` since, as far as is known
        here. ``is_sleeping`` asks the core itself.
        """
        return self._delivery.asleep

    def check_health(self) -> None:
        """Do nothing if the engine can serve. Raises ``EngineDead`` if it is closed, or its core is gone."""
        if self._death is not None:
            raise self._death
        if self._client is None or self._output_task is None:
            raise EngineDead("the engine is not started")
        if not self._client.is_alive or self._output_task.done():
            raise EngineDead("the engine core is gone")

    def check_progress(self) -> None:
        """``check_health``, and that the core makes progress. Raises ``EngineStalled`` if it does not for now.

        A core that is stopped is found out within four seconds; one that computes, however long, is well.
        """
        self.check_health()
        if self._watch is not None:
            self._watch.check_progress()

    # ---- requests ----

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        on_abandoned: Callable[[RequestOutput], None] | None = None,
        on_accepted: Callable[[], None] | None = None,
        holding: Holding | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate, and yield outputs as ``params.output_kind`` says. The last one is ``finished``.

        Leaving the loop early, closing the generator or cancelling its task ends the request in the core at once.

        Args:
            prompt: text, token ids, or a dict (``frontend.prompts.PromptDict``).
            params: None takes the model's defaults.
            request_id: label of the outputs, unique among the requests that run; made up when None.
            priority: lower runs first, where the scheduler goes by priority.
            cache_salt: share the prefix cache only with requests of the same salt.
            tenant: who asks, by a name that is no secret: the shares of tenants are fair where the policy is.
            on_abandoned: is given what nobody takes any more when the loop is left early: the last output, with
                ``finish_reason`` ``abort`` for what had to be ended. It must not raise.
            on_accepted: is called once the request is in the core: nothing is wrong with it, and it is not refused.
            holding: of ``held_logprobs``, for an answer that is made of several requests, or is held for longer than
                this; who gives it clears it.

        Raises:
            InvalidRequest: with the name of the field at fault; for ``logprobs`` also later, when the answer has more
                of them than there is room for, in an engine that is ``bounded``.
            Overloaded: when too much waits already, or too many log-probabilities are held, in an engine that is
                ``bounded``.
            RequestFailed: when the engine could not finish this request.
            EngineDead: when the engine is closed or gone.
        """
        self.check_health()
        label = uuid.uuid4().hex if request_id is None else request_id
        if not isinstance(label, str) or label in self._delivery.queues:
            raise InvalidRequest("request_id must be a text that no running request has", field="request_id")
        params = self._loaded.default_params() if params is None else check_params(params)
        count = params.n
        if self.admission is not None:
            self.admission.take(count, tenant)
        queue = self._delivery.queues[label] = OutputQueue(params.output_kind)
        own_holding = self.held_logprobs.hold()
        prepared = None
        try:
            processed = await self._prepare(label, prompt, params, priority, cache_salt, tenant)
            self._submit(processed, own_holding if holding is None else holding)
            prepared = processed
            if on_accepted is not None:
                on_accepted()
            while True:
                output = await queue.get()
                _raise_failure(output)
                yield output
                if output.finished:
                    return
                if params.output_kind is OutputKind.DELTA:
                    own_holding.clear()
        finally:
            if self.admission is not None:
                self.admission.leave(count, () if prepared is None else prepared.requests, tenant)
            self._aborted_early.discard(label)
            self._abort([label])
            own_holding.clear()
            del self._delivery.queues[label]
            if on_abandoned is not None and (rest := queue.take()) is not None:
                on_abandoned(rest)

    async def abort(self, request_id: str) -> None:
        """End a request; its consumer gets a last output with ``finish_reason`` ``abort``. Unknown ids are ignored."""
        if request_id in self._delivery.queues and self._outputs is not None and request_id not in self._outputs:
            self._aborted_early.add(request_id)  # its prompt is still being tokenized
        self._abort([request_id])

    async def call(self, method: str, *args: Any) -> Any:
        """Run a control method of the core, such as ``reset_prefix_cache``.

        Raises:
            RuntimeError: with the core's message when it fails.
            EngineDead: when the engine is closed or gone.
        """
        self.check_health()
        return await self._running_client.call(method, *args)

    async def sleep(self, level: int = 1) -> None:
        """Hold all requests until ``wake_up``, those that come included.

        Level 1 gives the memory of the KV cache back to the system, and on a GPU that of the weights, which are kept in
        main memory. Level 2 gives up the weights, too; they are read again from their files. What runs loses nothing:
        it is computed again from its tokens. Level 0 only holds.

        Raises:
            InvalidRequest: without ``enable_sleep_mode``, and for another level.
            RequestFailed: there is no room for the weights in main memory. The engine is as it was.
            EngineDead: when the engine is closed or gone.
        """
        check_sleep(self.config, level)
        await self._go_to_sleep("sleep", level)

    async def release_kv_cache_memory(self) -> None:
        """Hold all requests and give back the memory of the KV cache alone, until ``wake_up``. The weights stay.

        Raises:
            InvalidRequest: without ``enable_sleep_mode``.
            EngineDead: when the engine is closed or gone.
        """
        check_can_sleep(self.config)
        await self._go_to_sleep("release_kv_cache_memory")

    async def _go_to_sleep(self, method: str, *args: Any) -> None:
        was_asleep, self._delivery.asleep = self._delivery.asleep, True
        try:
            await self._call_or_fail(method, *args)
        except BaseException:
            self._delivery.asleep = was_asleep
            raise

    async def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Take memory again; go on with what was held once all of it is back.

        Args:
            tags: ``weights`` or ``kv_cache``, to take that alone for now; None or both for all.

        Raises:
            InvalidRequest: for another tag.
            RequestFailed: there is too little memory, or the files of the weights cannot be read; the message says
                why. The engine sleeps on, and may be woken again.
            EngineDead: when the engine is closed or gone.
        """
        check_tags(tags)
        await self._call_or_fail("wake_up", *([list(tags)] if tags else []))
        self._delivery.asleep = await self.is_sleeping()

    async def _call_or_fail(self, method: str, *args: Any) -> None:
        """``call``, where the message of a failure is meant for who asked."""
        try:
            await self.call(method, *args)
        except RuntimeError as error:
            raise RequestFailed(f"{method} failed: {error}") from error

    async def is_sleeping(self) -> bool:
        """Whether requests are held. Raises ``EngineDead`` when the engine is closed or gone."""
        sleeps: bool = await self.call("is_sleeping")
        return sleeps

    async def collective_rpc(
        self, method: str, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> list[Any]:
        """Call a method of every worker, such as one of ``worker_extension_cls``, between two steps.

        Arguments and results must be plain data. Returns the results, worker by worker.

        Raises:
            InvalidRequest: when workers have no such method.
            RuntimeError: with the worker's message when it fails.
            EngineDead: when the engine is closed or gone.
        """
        self._num_worker_calls += 1
        try:
            results: list[Any] = await self.call("collective_rpc", method, list(args), kwargs or {})
        finally:
            self._num_worker_calls -= 1
        return results

    async def start_profile(self) -> None:
        """Record the steps from now on, as ``profiler_config`` says.

        Raises:
            InvalidRequest: without a profiler, and while a profile is under way.
            EngineDead: when the engine is closed or gone.
        """
        check_started(await self.call("start_profile"))

    async def stop_profile(self) -> list[str]:
        """Write what was recorded; returns the names of the files.

        Raises:
            InvalidRequest: when no profile is under way.
            EngineDead: when the engine is closed or gone.
        """
        return check_stopped(await self.call("stop_profile"))

    @property
    def _running_client(self) -> "CoreClient":
        if self._client is None:
            raise EngineDead("the engine is not started")
        return self._client

    @property
    def _processors(self) -> tuple[InputProcessor, OutputProcessor]:
        if self._inputs is None or self._outputs is None:
            raise EngineDead("the engine is not started")
        return self._inputs, self._outputs

    async def _prepare(
        self, label: str, prompt: Prompt, params: SamplingParams, priority: int, cache_salt: str | None, tenant: str
    ) -> PreparedRequest:
        inputs, _ = self._processors

        def process() -> PreparedRequest:
            return inputs.process(label, prompt, params, priority=priority, cache_salt=cache_salt, tenant=tenant)

        chars = inputs.chars_to_tokenize(prompt)
        if chars > LONG_TEXT_CHARS:
            return await self._renderers.run(process, size=chars)
        await self._tokenizing.take(chars)
        return process()

    def _submit(self, prepared: PreparedRequest, holding: Holding) -> None:
        _, outputs = self._processors
        if self._death is not None:
            raise self._death
        if self.admission is not None:
            self.admission.enqueue(prepared.requests)
        outputs.add(prepared, holding=holding)
        if self._request_log is not None:
            self._request_log.write(prepared)
        if prepared.request_id in self._aborted_early:
            self._delivery.deliver(outputs.abort([prepared.request_id])[1])
        else:
            self._running_client.add(prepared.requests)

    def _abort(self, request_ids: list[str]) -> None:
        if self._outputs is None:
            return
        engine_ids, result = self._outputs.abort(request_ids)
        if engine_ids and self._death is None:
            self._running_client.abort(engine_ids)
        self._delivery.deliver(result)

    # ---- outputs ----

    async def _deliver_outputs(self, client: "CoreClient", outputs: OutputProcessor) -> None:
        """Deliver what the core sends until it is gone; then tell everyone who waits."""
        try:
            await self._delivery.run(client, outputs, self.admission)
        except EngineDead as error:
            self._die(error)
        except Exception as error:
            logger.exception("the outputs of the engine could not be handled")
            self._die(EngineDead(f"the engine's outputs could not be handled ({type(error).__name__})"))

    def _die(self, error: EngineDead) -> None:
        if self._death is None:
            self._death = error
        self._delivery.fail(self._death)


def _raise_failure(output: RequestOutput) -> None:
    for completion in output.outputs:
        if completion.finish_reason == "error":
            raise RequestFailed(completion.error or "the request failed in the engine")
