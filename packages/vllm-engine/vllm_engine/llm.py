"""``LLM``: the engine for programs without an event loop. It computes in the caller's own thread.

With ``VLLM_ENABLE_V1_MULTIPROCESSING`` it computes in a process of its own, and the caller's thread waits for it.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vllm_engine import envs
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.errors import ConfigError, EngineDead, InvalidRequest
from vllm_engine.frontend.chat_template import check_template_kwargs, render_chat
from vllm_engine.frontend.content_format import ContentFormat
from vllm_engine.frontend.engine_frontend import ModelFrontend, resolve_config, resolve_model_path
from vllm_engine.frontend.input_processor import PreparedRequest, check_params
from vllm_engine.frontend.profiles import check_started, check_stopped
from vllm_engine.frontend.progress import NoProgress, Progress, TqdmProgress
from vllm_engine.frontend.prompts import Prompt
from vllm_engine.frontend.request_log import RequestLog
from vllm_engine.frontend.sleeping import check_can_sleep, check_sleep, check_tags
from vllm_engine.frontend.tokenizer import Tokenizer
from vllm_engine.logging import get_logger
from vllm_engine.messages import EngineReady
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind, SamplingParams

if TYPE_CHECKING:
    from vllm_engine.core.clients.inproc import InprocClient
    from vllm_engine.core.clients.sync_process import SyncProcessClient

    CoreClient = InprocClient | SyncProcessClient

logger = get_logger(__name__)

Message = dict[str, Any]


class LLM:
    """A model to generate with: ``LLM("demo").generate("Hello")``.

    Requests of one call run in one batch, as many at once as fit. Calls from several threads wait for each other.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        """Load a model.

        Args:
            model: folder or hub name; ``demo`` is built in; None takes the default model.
            options: any setting of the engine by name, such as ``max_model_len=2048`` (see ``EngineArgs``).

        Raises:
            ConfigError: for an unknown setting, or one that cannot be honoured.
        """
        self._client: CoreClient | None = None
        self._lock = threading.Lock()
        self._asleep = False
        self._counter = itertools.count()
        self.config: EngineConfig = resolve_config(EngineArgs(model, **options))
        if self.config.observability.otlp_traces_endpoint is not None:
            raise ConfigError(
                "otlp_traces_endpoint is for vllm serve and run-batch: spans are those of HTTP requests",
                field="otlp_traces_endpoint",
            )
        model_path = resolve_model_path(self.config)
        self._model = ModelFrontend.load(self.config, model_path)
        self._client = self._create_client(model_path)
        self.ready: EngineReady = self._client.ready
        self._inputs, self._outputs = self._model.processors(self.config, self.ready)
        self._request_log = RequestLog() if self.config.async_engine.enable_log_requests else None

    def _create_client(self, model_path: Path) -> "CoreClient":
        if envs.get("VLLM_ENABLE_V1_MULTIPROCESSING"):
            from vllm_engine.core.clients.sync_process import SyncProcessClient

            return SyncProcessClient(self.config, model_path)
        from vllm_engine.core.clients.inproc import InprocClient

        return InprocClient(self.config, model_path)

    # ---- generation ----

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Generate for one prompt or many.

        Args:
            prompts: texts, lists of token ids, or dicts (``frontend.prompts.PromptDict``); or one of these.
            sampling_params: for all prompts, or one for each; None takes the model's defaults.
            use_tqdm: show a progress bar; or a function that makes one as ``tqdm`` does.
            priority: one for each prompt; lower runs first, where the scheduler goes by priority.

        Returns:
            One finished output per prompt, in their order. A request that failed in the engine has completions with
            ``finish_reason`` ``error``.

        Raises:
            InvalidRequest: with the name of the field at fault, before anything runs; and while the engine sleeps.
            EngineDead: when the engine is closed.
        """
        prompt_list = _prompt_list(prompts)
        params_list = self._params_list(sampling_params, len(prompt_list))
        if priority is not None and not isinstance(priority, (list, tuple)):
            raise InvalidRequest("priority must be a list with one for each prompt", field="priority")
        priorities = [0] * len(prompt_list) if priority is None else list(priority)
        if len(priorities) != len(prompt_list):
            raise InvalidRequest(
                f"there are {len(prompt_list)} prompts, but {len(priorities)} priorities", field="priority"
            )
        with self._lock:
            client = self._running_client
            if self._asleep:
                raise InvalidRequest("the engine sleeps: call wake_up first")
            prepared = self._prepare(prompt_list, params_list, priorities)
            return self._run(client, prepared, _progress(use_tqdm))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        tools: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many.

        Args:
            messages: a conversation as a list of messages, or a list of conversations.
            sampling_params: as in ``generate``.
            use_tqdm: as in ``generate``.
            tools: function descriptions that the model may call.
            chat_template: name of one of the model's templates, or a template itself.
            chat_template_content_format: how content reaches the template, see ``ContentFormat``.
            add_generation_prompt: begin an answer.
            continue_final_message: go on with the last message instead (then without ``add_generation_prompt``).
            chat_template_kwargs: further variables of the template.

        Returns:
            One finished output per conversation, in their order.

        Raises:
            InvalidRequest: with the name of the field at fault, before anything runs.
            EngineDead: when the engine is closed.
        """
        tokenizer = self.get_tokenizer()
        variables = check_template_kwargs(chat_template_kwargs)
        texts = [
            render_chat(
                tokenizer,
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                chat_template_content_format=chat_template_content_format,
                **variables,
            )
            for conversation in _conversations(messages)
        ]
        # The template has put the special tokens in already.
        prompts: list[Prompt] = [{"prompt": text, "add_special_tokens": False} for text in texts]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ``InvalidRequest`` when the engine runs without one."""
        if self._model.tokenizer is None:
            raise InvalidRequest("this engine runs without a tokenizer")
        return self._model.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's own defaults, as far as it has any."""
        return self._model.default_params()

    # ---- life ----

    def collective_rpc(self, method: str, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> list[Any]:
        """Call a method of every worker, such as one of ``worker_extension_cls``; returns one result each.

        Where the engine has a process of its own, arguments and results must be plain data. Raises ``InvalidRequest``
        when workers have no such method, and what it raises, or ``RuntimeError`` with its message.
        """
        results: list[Any] = self._running_client.call("collective_rpc", method, list(args), kwargs or {})
        return results

    def sleep(self, level: int = 1) -> None:
        """Give memory back until ``wake_up``. Level 0 gives nothing back.

        Level 1 gives back that of the KV cache, and on a GPU that of the weights, which are kept in main memory; level
        2 that of the weights altogether.

        Raises:
            InvalidRequest: without ``enable_sleep_mode``, and for another level.
            RuntimeError: there is no room for the weights in main memory. The engine is as it was.
        """
        check_sleep(self.config, level)
        with self._lock:
            self._running_client.call("sleep", level)
            self._asleep = True

    def release_kv_cache_memory(self) -> None:
        """Give back the memory of the KV cache alone until ``wake_up``; the weights stay.

        Raises:
            InvalidRequest: without ``enable_sleep_mode``.
        """
        check_can_sleep(self.config)
        with self._lock:
            self._running_client.call("release_kv_cache_memory")
            self._asleep = True

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Take memory again.

        Args:
            tags: ``weights`` or ``kv_cache``, to take that alone for now; None or both for all.

        Raises:
            InvalidRequest: for another tag.
            ConfigError: the files of the weights cannot be read.
            RuntimeError: there is too little memory; also for unreadable weights of an engine in a process of its own.
                After either, the engine sleeps on and may be woken again.
        """
        check_tags(tags)
        with self._lock:
            self._running_client.call("wake_up", *([list(tags)] if tags else []))
            self._asleep = self._running_client.call("is_sleeping")

    def start_profile(self) -> None:
        """Record the steps from now on, as ``profiler_config`` says.

        Raises:
            InvalidRequest: without a profiler, and while a profile is under way.
        """
        check_started(self._running_client.call("start_profile"))

    def stop_profile(self) -> list[str]:
        """Write what was recorded; returns the names of the files.

        Raises:
            InvalidRequest: when no profile is under way.
        """
        return check_stopped(self._running_client.call("stop_profile"))

    def close(self) -> None:
        """Release the model. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # At the end of the interpreter anything may be gone already, and __init__ may not have come far.
        if getattr(self, "_client", None) is not None:
            with contextlib.suppress(Exception):
                self.close()

    # ---- how it works ----

    @property
    def _running_client(self) -> "CoreClient":
        if self._client is None:
            raise EngineDead("the engine is closed")
        return self._client

    def _params_list(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            return [self._model.default_params()] * count
        if not isinstance(params, (list, tuple)):
            return [check_params(params)] * count
        if len(params) != count:
            raise InvalidRequest(
                f"there are {count} prompts, but {len(params)} sampling_params", field="sampling_params"
            )
        return params

    def _prepare(
        self, prompts: list[Prompt], params_list: Sequence[SamplingParams], priorities: list[int]
    ) -> list[PreparedRequest]:
        tokenized = self._tokenize(prompts)
        return [
            self._inputs.process(
                str(next(self._counter)), prompt, params, priority=priority, token_ids=tokenized.get(i)
            )
            for i, (prompt, params, priority) in enumerate(zip(prompts, params_list, priorities, strict=True))
        ]

    def _tokenize(self, prompts: list[Prompt]) -> dict[int, list[int]]:
        """Ids of the plain texts among many prompts, by position: all cores work on them together."""
        tokenizer = self._model.tokenizer
        positions = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
        if tokenizer is None or len(positions) < 2:
            return {}
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        return dict(zip(positions, tokenizer.encode_batch(texts), strict=True))

    def _run(self, client: "CoreClient", prepared: list[PreparedRequest], progress: Progress) -> list[RequestOutput]:
        finished: dict[str, RequestOutput] = {}
        with self._abort_on_error(client), progress.of(len(prepared)) as bar:
            for request in prepared:
                self._outputs.add(request, kind=OutputKind.FINAL_ONLY)
                if self._request_log is not None:
                    self._request_log.write(request)
                client.add(request.requests)
            while self._outputs.num_requests:
                if not client.has_unfinished():
                    raise EngineDead("the engine has lost requests")
                step = client.step()
                result = self._outputs.process(step.updates, step.timestamp)
                if result.aborts:
                    client.abort(result.aborts)
                for output in result.outputs:
                    finished[output.request_id] = output
                    bar.advance(output)
        return [finished[request.request_id] for request in prepared]

    @contextlib.contextmanager
    def _abort_on_error(self, client: "CoreClient") -> Iterator[None]:
        """Whatever interrupts a call, Ctrl-C included: its requests must not be in the engine at the next one."""
        try:
            yield
        except BaseException:
            engine_ids, _ = self._outputs.abort_all()
            client.abort(engine_ids)
            raise


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt in any form, or several, as a list. A list of integers is one prompt."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise InvalidRequest(
            f"prompts must be a prompt or a list of them, got a {type(prompts).__name__}", field="prompt"
        )
    if prompts and all(type(entry) is int for entry in prompts):
        return [list(prompts)]
    return list(prompts)


def _conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", field="messages")
    if isinstance(messages[0], (list, tuple)):
        if not all(isinstance(conversation, (list, tuple)) for conversation in messages):
            raise InvalidRequest("messages mixes conversations with something else", field="messages")
        return [list(conversation) for conversation in messages]
    return [list(messages)]


def _progress(use_tqdm: bool | Callable[..., Any]) -> Progress:
    if not use_tqdm:
        return NoProgress()
    return TqdmProgress(use_tqdm if callable(use_tqdm) else None)
