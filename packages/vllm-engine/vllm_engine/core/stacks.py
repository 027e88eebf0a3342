"""The stacks of all threads of a process as text, for the log of a stall: of this one, and of an engine process.

An engine process writes its own into a file when it gets a signal. The handler runs without the interpreter, so a
thread that holds the interpreter's lock for ever is shown, too.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

STACKS_SIGNAL = signal.SIGUSR1
FILE_NAME = "stacks.txt"
ANSWER_SECONDS = 1.0
"""How long a process gets to write its stacks."""
_POLL_SECONDS = 0.05


def offer_stacks(folder: str) -> None:
    """Let this process write its stacks into a file of ``folder``, again with each ``STACKS_SIGNAL``."""
    # Not closed: the signal may come at any time. Appended to, so that the reader can tell the new from the old.
    file = open(os.path.join(folder, FILE_NAME), "ab")  # noqa: SIM115
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)


async def stacks_of(pid: int, folder: str) -> str:
    """The stacks of a child process that has called ``offer_stacks(folder)``.

    A process that is stopped, or gone, cannot write them: then its state is the answer.
    """
    path = Path(folder) / FILE_NAME
    try:
        before = path.stat().st_size
        os.kill(pid, STACKS_SIGNAL)
        size = before
        for _ in range(round(ANSWER_SECONDS / _POLL_SECONDS)):
            await asyncio.sleep(_POLL_SECONDS)
            grown = path.stat().st_size
            if grown == size > before:
                return path.read_bytes()[before:].decode(errors="replace")
            size = grown
    except OSError as error:
        return f"its stacks cannot be had: {error.strerror}"
    return f"it does not tell its stacks; the system says of it: {_state(pid)}"


def _state(pid: int) -> str:
    """The line of ``/proc`` about what a process does, such as ``T (stopped)``."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "nothing"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), "nothing")


def own_stacks() -> str:
    """The stacks of all threads of this process, each under its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"Thread {names.get(ident, ident)} (most recent call last):\n")
        parts += traceback.format_stack(frame)
    return "".join(parts)
