"""How many threads compute, and on which cores. Decided here; ``thread_binding`` does it."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from vllm_engine import envs
from vllm_engine.errors import ConfigError
from vllm_engine.execution.cgroup import cpu_quota
from vllm_engine.execution.cores import Node, ranges, usable_cpus, usable_nodes

BIND, RESERVED = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU"


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """Threads for the worker of one process.

    ``count`` is how many threads there may be. They run on ``cores``; None where the system decides. ``one_each``:
    thread ``i`` stays on ``cores[i]``; otherwise each thread may use all of them. ``memory_nodes``: the NUMA nodes
    where weights and cache belong; empty where there is but one, or the system decides.
    """

    count: int
    cores: tuple[int, ...] | None = None
    one_each: bool = False
    memory_nodes: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """The cores, for the log."""
        if self.cores is None:
            return "on any core"
        used = self.cores[: self.count] if self.one_each else self.cores
        if len(used) == 1:
            return f"on core {used[0]}"
        return f"on cores {ranges(used)}{', one on each' if self.one_each else ''}"


def plan_for_this_machine(asked: int | None) -> ThreadPlan:
    """The plan by the environment's variables; ``asked`` as in ``plan_threads``. Raises ``ConfigError``."""
    usable = usable_cpus()
    return plan_threads(
        envs.get(BIND), envs.get(RESERVED), usable_nodes(usable), usable, quota=cpu_quota(), asked=asked
    )


def plan_threads(
    bind: str | list[list[int]],
    reserved: int,
    nodes: list[Node],
    usable: Collection[int],
    *,
    quota: float | None = None,
    asked: int | None = None,
) -> ThreadPlan:
    """What the settings mean on this machine.

    ``auto`` takes the cores of one node: weights that are read over the link between nodes would slow down every step,
    and a second engine finds the other node, as it has more free memory. The threads are not bound one by one: two
    engines on the same cores, or another program, would then wait for a core while others idle.

    Args:
        bind: ``auto``, ``nobind``, or the cores of each worker; the first is ours.
        reserved: cores to leave to other work, of those of ``auto`` and ``nobind``.
        nodes: with the cores that may be used.
        usable: all hardware threads that may be used.
        quota: cores' worth of time that the cgroup allows.
        asked: threads that the user wants, at most (``OMP_NUM_THREADS``).

    Raises:
        ConfigError: naming the variable, for cores that cannot be used or when none is left.
    """
    if isinstance(bind, list):
        return _listed(bind[0], nodes, usable, asked)
    chosen = nodes if bind == "nobind" else [max(nodes, key=lambda node: (len(node.cores), node.free))]
    cores = tuple(core for node in chosen for core in node.cores)
    if reserved >= len(cores):
        raise ConfigError(f"{RESERVED}={reserved} leaves none of the {len(cores)} cores", field=RESERVED)
    cores = cores[: len(cores) - reserved]
    count = len(cores) if quota is None else min(len(cores), max(1, math.floor(quota)))
    count = asked or count
    if bind == "nobind" or set(cores) == set(usable):
        return ThreadPlan(count)
    return ThreadPlan(count, cores, memory_nodes=_several(nodes, cores))


def _listed(cores: list[int], nodes: list[Node], usable: Collection[int], asked: int | None) -> ThreadPlan:
    missing = sorted(set(cores) - set(usable))
    if missing:
        raise ConfigError(
            f"{BIND} names cores that this process may not use: {ranges(missing)} (it may use {ranges(usable)})",
            field=BIND,
        )
    if len(set(cores)) < len(cores):
        raise ConfigError(f"{BIND} names a core twice: {','.join(map(str, cores))}", field=BIND)
    count = min(asked or len(cores), len(cores))
    return ThreadPlan(count, tuple(cores), one_each=True, memory_nodes=_several(nodes, cores))


def _several(nodes: list[Node], cores: Collection[int]) -> tuple[int, ...]:
    """The nodes that have the cores; none when the machine has no other."""
    near = tuple(node.number for node in nodes if set(cores) & set(node.cpus))
    return near if len(nodes) > 1 else ()
