"""An OpenAI-compatible server that answers on a schedule, in a process of its own, and tells when it really wrote what.

``with running([Plan(...)]) as mock:`` starts one; those of a test run, each with a port of its own, share a process,
since to launch one takes longer than most of them live. A chunk's time counts from the arrival of the request, not from
the chunk before, so that lateness does not add up. Server and tests read the same clock (``time.perf_counter`` is the
system's monotonic clock on Linux), so ``mock.log()`` is what a client that adds no time of its own would measure.
"""

import argparse
import asyncio
import atexit
import functools
import json
import selectors
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

NUM_PROMPT_TOKENS = 7
"""``prompt_tokens`` of a prompt that is no text and no list of ids."""


@dataclass(frozen=True)
class Plan:
    """How one request is answered."""

    first_token_s: float = 0.0
    """Arrival of the request to the first chunk with text; to the end of an answer of vectors or scores."""
    next_token_s: float = 0.0
    """Between tokens; a chunk of several comes when its first one is due."""
    num_tokens: int | None = None
    """Length of the answer; None: as many as the request allows."""
    tokens_per_chunk: int = 1
    status: int = 200
    """Another one: an error instead of an answer, after ``first_token_s``."""
    error_after: int | None = None
    """Chunks after which the stream carries an error event and ends."""
    break_after: int | None = None
    """Chunks after which the connection is cut."""
    usage: bool = True

    def chunks(self, limit: int) -> list[tuple[float, int]]:
        """Seconds from arrival, and number of tokens, of each chunk with text."""
        total = limit if self.num_tokens is None else self.num_tokens
        result = []
        for begin in range(0, total, self.tokens_per_chunk):
            count = min(self.tokens_per_chunk, total - begin)
            result.append((self.first_token_s + begin * self.next_token_s, count))
        return result


@dataclass
class Served:
    """What really happened to one request; times are of ``time.perf_counter``."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    arrived: float
    """Its last byte was read."""
    writes: list[float] = field(default_factory=list)
    """Just before each chunk with text was written."""
    tokens: list[int] = field(default_factory=list)
    """Tokens of each of these."""
    ended: float = 0.0
    gone: bool = False
    """The client closed the connection before the answer's end."""


@dataclass(frozen=True)
class MockServer:
    """A running one."""

    url: str

    def log(self) -> list[Served]:
        """Every request so far, in the order of arrival."""
        tls = ssl._create_unverified_context() if self.url.startswith("https:") else None
        import urllib.request  # not for the server, which starts sooner without it

        with urllib.request.urlopen(f"{self.url}/log", context=tls) as answer:
            return [Served(**served) for served in json.load(answer)]


@contextmanager
def running(plans: Sequence[Plan], *options: str) -> Iterator[MockServer]:
    """A server that answers request ``i`` by plan ``i % len(plans)``, until the block ends."""
    process = _process()
    port = int(_ask(process, ["--plans", json.dumps([asdict(plan) for plan in plans]), *options]))
    try:
        scheme = "https" if "--certificate" in options else "http"
        yield MockServer(f"{scheme}://127.0.0.1:{port}")
    finally:
        _ask(process, ["--close", str(port)])


@functools.cache
def _process() -> subprocess.Popen[str]:
    """The process of all servers, until this one ends."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__)), "--shared"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.kill()  # it has nothing to bring into order
        process.wait(10)
        process.stdin.close()
        process.stdout.close()

    atexit.register(end)
    return process


def _ask(process: subprocess.Popen[str], arguments: list[str]) -> str:
    """What it answers to a line with the arguments of a server."""
    process.stdin.write(json.dumps(arguments) + "\n")
    process.stdin.flush()
    return process.stdout.readline()


class _Server:
    """What all connections share."""

    def __init__(self, plans: list[Plan], *, tokenize: bool, max_model_len: int) -> None:
        self._plans = plans
        self.served: list[Served] = []
        self.tokenize = tokenize
        self.max_model_len = max_model_len
        self.connections: set[asyncio.Transport] = set()

    def admit(self, served: Served) -> Plan:
        self.served.append(served)
        return self._plans[(len(self.served) - 1) % len(self._plans)]


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as benchmarks speak it: bodies with a length, answers one after the other."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._unread = b""
        self._current: Served | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._server.connections.add(self._transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()
        if self._current is not None:
            self._current.gone = True

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, blank, rest = self._unread.partition(b"\r\n\r\n")
        if not blank:
            return
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        arrived = time.perf_counter()
        self._unread = rest[length:]
        method, path, _ = request.split(" ")
        if method == "GET":
            self._get(path)
        else:
            self._post(path, json.loads(rest[:length]), headers, arrived)

    def _get(self, path: str) -> None:
        if path == "/log":
            self._send(200, [asdict(served) for served in self._server.served])
        elif path == "/v1/models":
            self._send(200, {"data": [{"id": "mock", "object": "model", "max_model_len": self._server.max_model_len}]})
        else:
            self._send(200 if path == "/health" else 404, {})

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str], arrived: float) -> None:
        if path == "/tokenize" and self._server.tokenize:
            texts = [body["prompt"]] if "prompt" in body else [message["content"] for message in body["messages"]]
            ids = list(range(sum(len(text.split()) for text in texts)))  # one token a word
            self._send(200, {"count": len(ids), "tokens": ids, "max_model_len": self._server.max_model_len})
            return
        form, pooled = _TEXTS.get(path), _POOLED.get(path)
        if form is None and pooled is None:
            self._send(404, {"error": {"message": f"there is no {path}"}})
            return
        served = self._current = Served(path, body, headers, arrived)
        plan = self._server.admit(served)
        if plan.status != 200:
            self._at(arrived + plan.first_token_s, self._refuse, served, plan.status)
        elif pooled is not None:
            usage = None if not plan.usage else {"prompt_tokens": _num_input_tokens(body)}
            answer = {**pooled(body), "usage": usage and {**usage, "total_tokens": usage["prompt_tokens"]}}
            self._at(arrived + plan.first_token_s, self._answer, served, answer)
        elif body.get("stream"):
            self._stream(plan, served, form)
        else:
            chunks = plan.chunks(_limit(body))
            count = sum(count for _, count in chunks)
            usage = _usage(body, count) if plan.usage else None
            answer = form.whole(" tok" * count, usage and form.usage(usage))
            self._at(arrived + chunks[-1][0], self._answer, served, answer)

    def _stream(self, plan: Plan, served: Served, form: "_Texts") -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for event in form.before:
            self._transport.write(_chunked(_event(event)))
        chunks = plan.chunks(_limit(served.body))
        fault = plan.error_after if plan.break_after is None else plan.break_after
        if fault is not None:
            chunks = chunks[:fault]
        options = served.body.get("stream_options") or {}
        usage = None
        if plan.usage and (options.get("include_usage") or not form.done):
            usage = form.usage(_usage(served.body, sum(count for _, count in chunks)))
        last = form.last(usage)
        steps: list[tuple[float, Callable[[], None]]] = [
            (offset, partial(self._write, served, _event(form.chunk(" tok" * count)), count))
            for offset, count in chunks
        ]
        end = chunks[-1][0] if chunks else plan.first_token_s
        if plan.break_after is not None:
            steps.append((end, partial(self._break, served)))
        elif plan.error_after is not None:
            steps.append((end, partial(self._fail, served)))
        else:
            steps.append((end, partial(self._finish, served, last, form.done)))
        self._follow(served.arrived, iter(steps))

    def _follow(self, begin: float, steps: Iterator[tuple[float, Callable[[], None]]]) -> None:
        """Take the steps at their times, one after the other: timers of the same time may fire in any order."""
        for offset, step in steps:
            if begin + offset > time.perf_counter():
                self._at(begin + offset, self._take, step, begin, steps)
                return
            step()

    def _take(self, step: Callable[[], None], begin: float, steps: Iterator[Any]) -> None:
        step()
        self._follow(begin, steps)

    def _at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        # The loop's clock is time.monotonic: the same as perf_counter.
        self._timer = self._loop.call_at(when, what, *arguments)

    def _write(self, served: Served, event: bytes, tokens: int) -> None:
        served.writes.append(time.perf_counter())
        served.tokens.append(tokens)
        self._transport.write(_chunked(event))

    def _finish(self, served: Served, events: list[dict[str, Any]], done: bool) -> None:
        last = b"".join(_chunked(_event(event)) for event in events) + (_chunked(b"data: [DONE]\n\n") if done else b"")
        self._end(served)
        self._transport.write(last + b"0\r\n\r\n")

    def _answer(self, served: Served, content: dict[str, Any]) -> None:
        self._end(served)
        self._send(200, content)

    def _fail(self, served: Served) -> None:
        error = {"error": {"message": "the engine stumbled", "type": "InternalServerError", "code": 500}}
        self._end(served)
        self._transport.write(_chunked(_event(error)) + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _break(self, served: Served) -> None:
        self._end(served)
        self._transport.abort()

    def _refuse(self, served: Served, status: int) -> None:
        self._end(served)
        self._send(status, {"error": {"message": f"refused with {status}", "type": "mock", "code": status}})

    def _end(self, served: Served) -> None:
        served.ended = time.perf_counter()
        self._current = None

    def _send(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status} Mock\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _num_prompt_tokens(prompt: Any) -> int:
    """One token a word, or as many as there are ids."""
    if isinstance(prompt, str):
        return len(prompt.split())
    return len(prompt) if isinstance(prompt, list) else NUM_PROMPT_TOKENS


def _completion_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000, "model": "mock"}
    return {**head, "choices": [choice], "usage": None}


def _chat_chunk(text: str) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000}
    return {**head, "model": "mock", "choices": [choice], "usage": None}


def _whole_completion(text: str, usage: Any) -> dict[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text}], "usage": usage}


def _whole_chat(text: str, usage: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}


def _response_chunk(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "item_id": "msg_0", "output_index": 0, "delta": text}


def _whole_response(text: str, usage: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "role": "assistant", "content": content}]
    return {"object": "response", "status": "completed", "error": None, "output": output, "usage": usage}


def _usage_chunk(usage: Any) -> list[dict[str, Any]]:
    return [] if usage is None else [{"choices": [], "usage": usage}]


def _response_end(usage: Any) -> list[dict[str, Any]]:
    return [
        {"type": "response.output_text.done", "text": "all of it"},
        {"type": "response.completed", "response": {"status": "completed", "error": None, "usage": usage}},
    ]


def _response_usage(usage: dict[str, int]) -> dict[str, int]:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


@dataclass(frozen=True)
class _Texts:
    """How an API answers with text."""

    chunk: Callable[[str], dict[str, Any]]
    """Event that carries a text."""
    whole: Callable[[str, Any], dict[str, Any]]
    """An answer that is no stream, with the usage."""
    last: Callable[[Any], list[dict[str, Any]]] = _usage_chunk
    """Events after the texts, with the usage."""
    before: tuple[dict[str, Any], ...] = ()
    """Events at once."""
    usage: Callable[[dict[str, int]], dict[str, int]] = dict
    """The usage in its own words."""
    done: bool = True
    """A stream ends with ``[DONE]``."""


_CREATED = {"type": "response.created", "response": {"status": "in_progress", "error": None, "usage": None}}
_TEXTS = {
    "/v1/completions": _Texts(_completion_chunk, _whole_completion),
    "/v1/chat/completions": _Texts(_chat_chunk, _whole_chat),
    "/v1/responses": _Texts(_response_chunk, _whole_response, _response_end, (_CREATED,), _response_usage, done=False),
}


def _vectors(body: dict[str, Any]) -> dict[str, Any]:
    inputs = body.get("input")
    count = len(inputs) if isinstance(inputs, list) and isinstance(inputs[0], str) else 1
    return {"data": [{"index": number, "embedding": [0.25] * 64} for number in range(count)]}


def _scores(body: dict[str, Any]) -> dict[str, Any]:
    return {"results": [{"index": number, "relevance_score": 0.5} for number in range(len(body["documents"]))]}


_POOLED = {
    **dict.fromkeys(("/v1/embeddings", "/embeddings", "/pooling"), _vectors),
    **dict.fromkeys(("/v1/rerank", "/rerank"), _scores),
}


def _num_input_tokens(body: dict[str, Any]) -> int:
    """Tokens of texts, or of a query with each document."""
    if "documents" in body:
        return sum(_num_prompt_tokens(body["query"]) + _num_prompt_tokens(text) for text in body["documents"])
    inputs = body.get("input")
    if isinstance(inputs, list) and isinstance(inputs[0], str):
        return sum(map(_num_prompt_tokens, inputs))
    return _num_prompt_tokens(inputs)


def _limit(body: dict[str, Any]) -> int:
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    return next((body[name] for name in names if body.get(name)), 16)


def _usage(body: dict[str, Any], completion: int) -> dict[str, int]:
    prompt = _num_prompt_tokens(body.get("prompt"))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _listen(options: argparse.Namespace) -> tuple[_Server, asyncio.Server]:
    plans = [Plan(**plan) for plan in json.loads(options.plans)]
    server = _Server(plans, tokenize=not options.no_tokenize, max_model_len=options.max_model_len)
    tls = None
    if options.certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(server), "127.0.0.1", options.port, backlog=1024, ssl=tls)
    return server, listening


def _port(listening: asyncio.Server) -> int:
    port: int = listening.sockets[0].getsockname()[1]
    return port


async def _serve(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Until nobody keeps our standard input open."""
    loop = asyncio.get_running_loop()
    open_: dict[int, tuple[_Server, asyncio.Server]] = {}
    if not options.shared:
        server, listening = await _listen(options)
        open_[_port(listening)] = server, listening
        print(*open_, flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wanted = parser.parse_args(json.loads(line))
        if wanted.close:
            server, listening = open_.pop(wanted.close)
            listening.close()
            for connection in [*server.connections]:
                connection.abort()
            print("closed", flush=True)
        else:
            server, listening = await _listen(wanted)
            open_[_port(listening)] = server, listening
            print(_port(listening), flush=True)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", help="list of plans as JSON")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-tokenize", action="store_true", help="a server without /tokenize")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--certificate", help="PEM file of certificate and key: speak TLS")
    parser.add_argument("--shared", action="store_true", help="read the arguments of servers from the standard input")
    parser.add_argument("--close", type=int, metavar="PORT", help="end the server there")
    # select() knows microseconds; epoll, the default, would wake up to a millisecond late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(parser.parse_args(), parser))


if __name__ == "__main__":
    _main()
