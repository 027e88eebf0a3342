"""A core that plays back what a test wrote down, in the places of the real clients."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.frontend import tiny_tokenizers as tiny
from vllm_engine.errors import EngineDead
from vllm_engine.messages import (
    EngineOutputs,
    EngineReady,
    EngineRequest,
    PositionLogprobs,
    RequestUpdate,
    SchedulerStats,
)

Answer = Callable[[EngineRequest], Iterable[int]]


@dataclass
class ScriptedCore:
    """Gives each request the tokens of ``answer``, ``tokens_per_step`` at a time, as the real core would."""

    answer: Answer
    tokens_per_step: int = 1
    max_model_len: int = 64
    vocab_size: int = 345
    added: list[EngineRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    """Position among the added requests -> how it fails instead."""
    running: dict[str, tuple[EngineRequest, list[int], int]] = field(default_factory=dict)

    @property
    def ready(self) -> EngineReady:
        return EngineReady(self.max_model_len, self.vocab_size, 10, 16, {})

    def add(self, requests: list[EngineRequest]) -> None:
        for request in requests:
            assert request.request_id not in self.running
            self.running[request.request_id] = (request, list(self.answer(request))[: request.max_tokens], 0)
            self.added.append(request)

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.aborted.append(request_id)
            self.running.pop(request_id, None)

    def has_unfinished(self) -> bool:
        return bool(self.running)

    def step(self) -> EngineOutputs:
        updates = [self._advance(request_id) for request_id in list(self.running)]
        return EngineOutputs(updates, time.monotonic(), SchedulerStats(num_running=len(self.running)))

    def _advance(self, request_id: str) -> RequestUpdate:
        request, tokens, done = self.running[request_id]
        position = next(i for i, added in enumerate(self.added) if added.request_id == request_id)
        if position in self.errors:
            del self.running[request_id]
            return RequestUpdate(request_id, [], finish_reason="error", error=self.errors[position])
        new = tokens[done : done + self.tokens_per_step]
        update = RequestUpdate(request_id, new, num_cached_tokens=16, scheduled_ts=time.monotonic())
        for i, token_id in enumerate(new):
            if token_id in request.stop_token_ids:
                update.new_token_ids = new = new[: i + 1]
                update.finish_reason = "stop"
                update.stop_reason = None if token_id in request.eos_token_ids else token_id
                break
        if update.finish_reason is None and done + len(new) >= len(tokens):
            update.finish_reason = "length"
        if request.params.logprobs is not None:
            update.logprobs = [PositionLogprobs([i, i, i + 1], [-0.5, -0.5, -2.0], 1) for i in new]
        if request.params.prompt_logprobs is not None and not done:
            update.prompt_logprobs = [PositionLogprobs([i], [-1.0], 3) for i in request.prompt_token_ids[1:]]
        self.running[request_id] = (request, tokens, done + len(new))
        if update.finish_reason is not None:
            del self.running[request_id]
        return update


class InprocDouble:
    """In the place of ``InprocClient``."""

    def __init__(self, core: ScriptedCore) -> None:
        self.core = core
        self.ready = core.ready
        self.closed = 0
        self.add, self.abort, self.has_unfinished = core.add, core.abort, core.has_unfinished

    def step(self) -> EngineOutputs:
        return self.core.step()

    def call(self, method: str, *args: Any) -> Any:
        return method, args

    def close(self) -> None:
        self.closed += 1


class AsyncDouble:
    """In the place of ``ProcessClient`` and ``ThreadClient``. ``pause`` holds the core; ``die`` ends it.

    With ``is_ahead`` its next step is always there already.
    """

    def __init__(self, core: ScriptedCore) -> None:
        self.core = core
        self.is_alive = True
        self.on_message: Callable[[], None] = lambda: None
        self.closed = 0
        self._awake = asyncio.Event()
        self._go = asyncio.Event()
        self._go.set()
        self._num_steps: int | None = None
        self.fault: Exception | None = None
        self.is_ahead = False
        self.waits: list[float] = []
        self._has_come = False

    @property
    def has_outputs(self) -> bool:
        return (self.is_ahead or self._has_come) and self._go.is_set() and self.core.has_unfinished()

    async def start(self) -> EngineReady:
        if self.fault is not None:
            raise self.fault
        return self.core.ready

    def add(self, requests: list[EngineRequest]) -> None:
        if self.fault is not None:
            raise self.fault
        self.core.add(requests)
        self._awake.set()

    def abort(self, request_ids: list[str]) -> None:
        self.core.abort(request_ids)

    async def wait_for_outputs(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)
        self._has_come = self.core.has_unfinished()

    async def next_outputs(self) -> EngineOutputs:
        self._has_come = False
        while self.fault is None:
            await self._go.wait()
            if self.core.has_unfinished():
                if self._num_steps is not None:
                    self._num_steps -= 1
                    if not self._num_steps:
                        self.pause()
                return self.core.step()
            self._awake.clear()
            await self._awake.wait()
        raise self.fault

    async def call(self, method: str, *args: Any) -> Any:
        return method, args

    def ping(self) -> None:
        if self._go.is_set():
            self.on_message()

    def cpu_seconds(self) -> float:
        return 0.0

    async def stacks(self) -> str:
        return "the stacks of the double"

    def pause(self) -> None:
        self._go.clear()

    def resume(self, num_steps: int | None = None) -> None:
        """Go on; with ``num_steps`` pause again after so many of them."""
        self._num_steps = num_steps
        self._go.set()

    def die(self, fault: Exception | None = None) -> None:
        self.fault = fault or EngineDead("the core was killed")
        self.is_alive = False
        self._go.set()
        self._awake.set()

    async def aclose(self) -> None:
        self.closed += 1
        self.is_alive = False


TOKENIZER = tiny.load("byte_level")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ids(text: str) -> list[int]:
    """Ids of a text in the tiny model's tokenizer."""
    return TOKENIZER.encode(text, add_special_tokens=False)


def says(text: str) -> Answer:
    """A core that gives the same answer to everyone."""
    return lambda _: ids(text)


def echo(request: EngineRequest) -> Iterable[int]:
    """A core that says the prompt again, then ends."""
    return [*request.prompt_token_ids, *request.eos_token_ids[:1]]


def model_folder(folder: Path) -> Path:
    """A folder with everything but tensors: configuration, tokenizer, chat template and sampling defaults."""
    tiny.write_folder(folder, "byte_level", chat_template=CHATML)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 350,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 65536,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()  # nobody reads it
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "max_new_tokens": 7}')
    return folder
