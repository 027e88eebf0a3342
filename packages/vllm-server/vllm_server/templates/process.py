"""Chat templates that come with requests are rendered in a process of their own, which may be killed at any time."""

import asyncio
import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_server.templates.worker import RenderCall, RenderResult, read_message, write_message


class TemplateProcess:
    """One process, started by the first call and again after each time that it had to be ended.

    Calls wait for one another here, and for nobody else: the event loop and the threads of the tokenizer stay free.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="request-templates")
        self._process: subprocess.Popen[bytes] | None = None

    async def render(self, call: RenderCall) -> str:
        """The text of a conversation.

        Raises:
            InvalidRequest: when it cannot be rendered, or not within the limits of time and memory.
            Unsupported: as ``render_chat`` does.
        """
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._exchange, call)
        if result.error is not None:
            raise (Unsupported if result.unsupported else InvalidRequest)(result.error, field=result.field)
        return result.text

    def close(self) -> None:
        """End the process, if there is one. It would also end with this one."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _exchange(self, call: RenderCall) -> RenderResult:
        try:
            process = self._running()
            if process.stdin is None or process.stdout is None:
                raise EOFError
            write_message(process.stdin, call)
            return msgspec.msgpack.decode(read_message(process.stdout), type=RenderResult)
        except (EOFError, OSError, msgspec.DecodeError):
            self._end()
            return RenderResult("", "the chat template takes too much time or memory", "chat_template")

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm_server.templates.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
