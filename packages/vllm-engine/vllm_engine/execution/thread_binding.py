"""Puts the threads that compute onto their cores, and the memory that they fill onto the nodes of these."""

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Collection, Iterator

from vllm_engine.execution.thread_plan import ThreadPlan
from vllm_engine.logging import get_logger
from vllm_kernels.cpu.threads import team_thread_ids

logger = get_logger(__name__)

_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""Number of the system call, by architecture."""
_DEFAULT, _PREFERRED, _INTERLEAVE = 0, 1, 3
_NODE_MASK_BITS = 1024


class ThreadBinding:
    """Binds as a plan says, in two steps, and undoes it: an ``LLM`` computes in its user's own thread.

    Made and entered in the thread that loads the model and computes. Threads that it starts have its cores, too.
    """

    def __init__(self, plan: ThreadPlan) -> None:
        self._plan = plan
        self._before: dict[int, set[int]] = {}
        """Cores of each thread that was bound, by its id."""

    def bind_caller(self) -> None:
        """Before weights are read: memory belongs to the node of the core that touches it first."""
        if self._plan.cores is None:
            return
        self._move(threading.get_native_id(), self._plan.cores)
        if self._plan.memory_nodes:
            # One node is where pages go as long as it has some. Over several they are spread: each thread reads all.
            _set_memory_policy(
                _PREFERRED if len(self._plan.memory_nodes) == 1 else _INTERLEAVE, self._plan.memory_nodes
            )

    def bind_team(self, threads: int) -> None:
        """When the number of threads is settled: all of them, those too that were there before."""
        cores = self._plan.cores
        if cores is None:
            return
        ids = team_thread_ids(threads)
        if ids is None:
            if self._plan.one_each:
                logger.warning("threads are bound to their cores together, not one by one: that takes native kernels")
            return
        for place, thread_id in enumerate(ids):
            self._move(thread_id, (cores[place % len(cores)],) if self._plan.one_each else cores)

    def undo(self) -> None:
        """Give the threads that still live the cores that they had."""
        for thread_id, cores in self._before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread_id, cores)
        if self._before and self._plan.memory_nodes:
            _set_memory_policy(_DEFAULT, ())
        self._before.clear()

    def _move(self, thread_id: int, cores: Collection[int]) -> None:
        try:
            before = os.sched_getaffinity(thread_id)
            os.sched_setaffinity(thread_id, cores)
        except OSError as error:  # a sandbox may forbid it: computing goes on, only slower
            logger.warning("a thread cannot be bound to its cores: %s", error)
            return
        self._before.setdefault(thread_id, before)


def current_core() -> int:
    """The core that the calling thread runs on."""
    return int(ctypes.CDLL(None).sched_getcpu())


@contextlib.contextmanager
def on_a_core_each(threads: int) -> Iterator[None]:
    """Keep the threads that compute for the caller apart, where there are as many as cores that it may use.

    Threads that were asleep are woken on the core of the one that wakes them as soon as the others are busy, if only
    for a moment, and then share it. Where there are more cores, or the threads are bound already, nothing is done.
    """
    cores = os.sched_getaffinity(0)
    ids = team_thread_ids(threads) if len(cores) == threads else None
    if ids is None or len(ids) < threads:
        yield
        return
    here = current_core()
    order = sorted(cores, key=lambda core: (core != here, core))
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        for thread_id, core in zip(ids, order, strict=True):
            os.sched_setaffinity(thread_id, {core})
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for thread_id in ids:
                os.sched_setaffinity(thread_id, cores)


def _set_memory_policy(mode: int, nodes: Collection[int]) -> None:
    """Where new pages of the calling thread, and of threads that it starts, go from now on."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None:
        return
    words = [0] * (_NODE_MASK_BITS // 64)
    for node in nodes:
        words[node // 64] |= 1 << node % 64
    mask = (ctypes.c_ulong * len(words))(*words)
    library = ctypes.CDLL(None, use_errno=True)
    size = _NODE_MASK_BITS if nodes else 0
    failed = library.syscall(ctypes.c_long(number), ctypes.c_int(mode), mask if nodes else None, ctypes.c_ulong(size))
    if failed:
        logger.warning("memory cannot be kept on NUMA nodes %s: %s", sorted(nodes), os.strerror(ctypes.get_errno()))
