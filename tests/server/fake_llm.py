"""A scripted engine with the face of ``AsyncLLM``: deterministic text, delays and faults on demand, no model.

A token is a character and its id the character's code. Completion ``i`` of a prompt is the alphabet from letter ``i``
on, over and over. What a prompt contains decides what goes wrong:

``!invalid``        refused with ``InvalidRequest`` (field ``prompt``)
``!overloaded``     refused with ``Overloaded``
``!dead``           refused with ``EngineDead``
``!boom``           refused with an error that nobody expects, whose text must not reach a client
``!fail-after-3``   three tokens, then ``RequestFailed``; the same with ``dead`` and ``boom``
``!error``          two tokens, then the finish reason ``error``
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.errors import EngineDead, EngineStalled, InvalidRequest, Overloaded, RequestFailed
from vllm_engine.frontend.held_logprobs import HeldLogprobs, Holding
from vllm_engine.frontend.profiles import check_started, check_stopped
from vllm_engine.frontend.prompts import parse_prompt
from vllm_engine.messages import EngineReady
from vllm_engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from vllm_engine.params import OutputKind, SamplingParams

BOS = 1
MAX_MODEL_LEN = 512
CHAT_TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}{% if mood is defined %}[{{ mood }}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[call {{ call.function.name }} {{ call.function.arguments.items() | list }}]"
    "{% endfor %}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class FakeTokenizer:
    """One token per character, after a beginning-of-sequence token."""

    chat_templates: Mapping[str, str] = {"default": CHAT_TEMPLATE}
    special_tokens_map: Mapping[str, str] = {"bos_token": "<s>"}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*([BOS] if add_special_tokens else []), *map(ord, text)]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        if not all(0 <= item < self.vocab_size for item in token_ids):
            raise InvalidRequest("token ids are integers from 0 to 1114111", field="tokens")
        return "".join(self.token_text(item) for item in token_ids if not (skip_special_tokens and item == BOS))

    vocab_size = 0x110000
    longest_token = 1
    all_special_ids = frozenset({BOS})
    bos_token, eos_token, pad_token = "<s>", None, None

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    def convert_ids_to_tokens(self, token_ids: list[int]) -> list[str]:
        return [self.token_text(item) for item in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode()

    def token_text(self, token_id: int) -> str:
        return "<s>" if token_id == BOS else chr(token_id)


@dataclass
class Call:
    """One call of ``generate``."""

    prompt: Any
    params: SamplingParams
    request_id: str | None
    priority: int
    cache_salt: str | None
    tenant: str = ""


class FakeLLM:
    """See the module. ``delay`` is the time per token, ``first_delay`` the time before the first, in seconds.

    No request gets a token while ``may_begin`` is not set.
    """

    def __init__(self, *, delay: float = 0.0, first_delay: float = 0.0, defaults: dict[str, Any] | None = None) -> None:
        self.config: EngineConfig = EngineArgs("fake/model", served_model_name=["fake", "alias"]).create_config()
        self.ready = EngineReady(MAX_MODEL_LEN, 0x110000, 100, 16, {})
        self.tokenizer: FakeTokenizer | None = FakeTokenizer()
        self.delay = delay
        self.first_delay = first_delay
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.defaults = defaults or {}
        self.calls: list[Call] = []
        self.control_calls: list[tuple[Any, ...]] = []
        self.aborted: dict[str | None, float] = {}
        self.running: set[str | None] = set()
        self.dead = False
        self.stalled = False
        self.asleep = False
        self.admission = None
        self.held_logprobs = HeldLogprobs(None)
        self.rendered = 0
        self.rendered_size = 0
        self.closed = False

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    def check_health(self) -> None:
        if self.dead:
            raise EngineDead("the engine core at 0x7f00deadbeef has died")

    def check_progress(self) -> None:
        self.check_health()
        if self.stalled:
            raise EngineStalled("the engine has made no progress for 3.5 s")

    def get_tokenizer(self) -> FakeTokenizer | None:
        return self.tokenizer

    def default_sampling_params(self) -> dict[str, Any]:
        return self.defaults

    async def in_renderer(self, work: Callable[[], Any], *, size: int = 0) -> Any:
        self.rendered += 1
        self.rendered_size = size
        return await asyncio.to_thread(work)

    async def call(self, method: str, *args: Any) -> None:
        self.check_health()
        self.control_calls.append((method, *args))

    async def sleep(self, level: int = 1) -> None:
        await self.call("sleep", level)
        self.asleep = True

    async def release_kv_cache_memory(self) -> None:
        await self.call("release_kv_cache_memory")
        self.asleep = True

    async def wake_up(self, tags: list[str] | None = None) -> None:
        await self.call("wake_up", *(tags or []))
        self.asleep = False

    async def collective_rpc(self, method: str, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        await self.call(method, *args, *(kwargs or {}).items())
        if method == "fail":
            raise RuntimeError("ArithmeticError: as asked")
        if method == "take_long":
            await asyncio.sleep(60)
        return [{"one": 1}, b"ab", complex(1, 2), None]

    async def is_sleeping(self) -> bool:
        await self.call("is_sleeping")
        return bool(self.control_calls and ("sleep", 1) in self.control_calls)

    async def start_profile(self) -> None:
        check_started(("start_profile",) not in self.control_calls)
        await self.call("start_profile")

    async def stop_profile(self) -> None:
        check_stopped(["a"] if self.control_calls[-1:] == [("start_profile",)] else None)
        self.control_calls.clear()

    async def abort(self, request_id: str) -> None:
        self.aborted[request_id] = time.monotonic()

    async def generate(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        on_abandoned: Callable[[RequestOutput], None] | None = None,
        on_accepted: Callable[[], None] | None = None,
        holding: Holding | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        self.calls.append(Call(prompt, params, request_id, priority, cache_salt, tenant))
        token_ids = self._token_ids(prompt)
        script = "".join(map(chr, token_ids))
        fault_at, fault = _fault(script)
        if fault_at == 0 and fault is not None:
            raise fault
        room = MAX_MODEL_LEN - len(token_ids)
        if params.max_tokens_must_fit and (params.max_tokens or 0) > room:
            raise InvalidRequest(f"max_tokens is {params.max_tokens}, but there is room for {room}", field="max_tokens")
        limit = min(params.max_tokens or MAX_MODEL_LEN, MAX_MODEL_LEN - len(token_ids))
        text_of_prompt = parse_prompt(prompt).text
        writers = [_Writer(index, params, limit) for index in range(params.n)]
        self.running.add(request_id)
        if on_accepted is not None:
            on_accepted()
        metrics = RequestMetrics(queued_ts=time.monotonic(), submitted_ts=time.monotonic())
        metrics.num_cached_tokens = params.n * (len(token_ids) // 16 * 16)
        done = False
        try:
            await asyncio.sleep(self.first_delay)
            await self.may_begin.wait()
            metrics.scheduled_ts = time.monotonic()
            for step in range(limit):
                if step == fault_at and fault is not None:
                    raise fault
                if self.delay:
                    await asyncio.sleep(self.delay)
                outputs = [writer.write(step, "!error" in script) for writer in writers if not writer.finished]
                finished = all(writer.finished for writer in writers)
                metrics.last_token_ts = time.monotonic()
                metrics.first_token_ts = metrics.first_token_ts or metrics.last_token_ts
                if params.output_kind is OutputKind.FINAL_ONLY:
                    if not finished:
                        continue
                    outputs = [writer.whole() for writer in writers]
                if holding is not None:
                    holding.add(sum(len(position) for output in outputs for position in output.logprobs or ()))
                done = finished
                yield RequestOutput(
                    request_id or "fake",
                    text_of_prompt,
                    token_ids,
                    outputs,
                    finished,
                    prompt_logprobs=_prompt_logprobs(token_ids, params) if step == 0 or finished else None,
                    num_cached_tokens=len(token_ids) // 16 * 16,
                    metrics=metrics,
                )
                if finished:
                    break
                await asyncio.sleep(0)
        finally:
            self.running.discard(request_id)
            if not done:
                self.aborted.setdefault(request_id, time.monotonic())
                if on_abandoned is not None:
                    # What a stream has of its tokens it was given; one that waits for the end has none.
                    whole = params.output_kind is OutputKind.FINAL_ONLY
                    outputs = [writer.whole() for writer in writers if whole]
                    on_abandoned(RequestOutput(request_id or "fake", text_of_prompt, token_ids, outputs, True))

    def _token_ids(self, prompt: Any) -> list[int]:
        parsed = parse_prompt(prompt)
        token_ids = parsed.token_ids
        if token_ids is None:
            token_ids = FakeTokenizer().encode(parsed.text or "", parsed.add_special_tokens)
        if len(token_ids) >= MAX_MODEL_LEN:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens, the model takes {MAX_MODEL_LEN}", field="prompt"
            )
        if any(item >= 0x110000 for item in token_ids):
            raise InvalidRequest("a token id is outside the vocabulary", field="prompt")
        return token_ids


class _Writer:
    """One completion on its way."""

    def __init__(self, index: int, params: SamplingParams, limit: int) -> None:
        self.index = index
        self.params = params
        self.limit = limit
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def write(self, step: int, fails: bool) -> CompletionOutput:
        letter = LETTERS[(self.index + step) % 26]
        self.text += letter
        self.token_ids.append(ord(letter))
        self.logprobs.append(_position(ord(letter), self.params.logprobs or 0))
        for stop in self.params.stop_strings:
            if self.text.endswith(stop):
                self.finish_reason, self.stop_reason = "stop", stop
        if not self.finished and len(self.text) == self.limit:
            self.finish_reason = "length"
        if fails and step == 1:
            self.finish_reason = "error"
        return self._output(letter, [ord(letter)], self.logprobs[-1:])

    def whole(self) -> CompletionOutput:
        return self._output(self.text, self.token_ids, self.logprobs)

    def _output(self, text: str, token_ids: list[int], logprobs: list[dict[int, Logprob]]) -> CompletionOutput:
        wanted = logprobs if self.params.logprobs is not None else None
        return CompletionOutput(
            self.index,
            text,
            token_ids,
            None,
            wanted,
            self.finish_reason,
            self.stop_reason,  # type: ignore[arg-type]
        )


def _position(token_id: int, num_top: int) -> dict[int, Logprob]:
    """The chosen token with -0.5, and the next letters less and less likely; the fourth is impossible."""
    position = {token_id: Logprob(-0.5, 1, chr(token_id))}
    for rank in range(2, num_top + 1):
        other = token_id + rank - 1
        position[other] = Logprob(-float(rank) if rank < 4 else -float("inf"), rank, chr(other))
    return position


def _prompt_logprobs(token_ids: list[int], params: SamplingParams) -> list[dict[int, Logprob] | None] | None:
    if params.prompt_logprobs is None:
        return None
    return [None, *(_position(item, params.prompt_logprobs) for item in token_ids[1:])]


def _fault(script: str) -> tuple[int, Exception | None]:
    kinds: dict[str, Exception] = {
        "invalid": InvalidRequest("the prompt is not to my taste", field="prompt"),
        "overloaded": Overloaded("too much to do", retry_after=3),
        "dead": EngineDead("core 0x7f00deadbeef died in /usr/lib/engine.py"),
        "boom": RuntimeError("<object at 0x7f00deadbeef> in /usr/lib/engine.py"),
        "fail": RequestFailed("The engine could not finish this request."),
    }
    match = re.search(r"!(\w+)(?:-after-(\d+))?", script)
    if match is None or match[1] not in kinds:
        return -1, None
    return int(match[2] or 0), kinds[match[1]]


def letters(count: int, start: int = 0) -> str:
    """What the fake writes: ``count`` letters from letter ``start`` on."""
    return "".join(LETTERS[(start + step) % 26] for step in range(count))


def sse_events(text: str) -> Iterator[str]:
    """The data of each event in the text of a stream."""
    for block in text.split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            yield block.removeprefix("data: ")
