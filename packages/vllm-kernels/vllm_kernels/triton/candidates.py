"""What could be chosen for a shape class, and what the compiler's figures say of it."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from vllm_kernels.triton.compilation import compile_for
from vllm_kernels.triton.device import SHARED_MEMORY
from vllm_kernels.triton.kernel import Configuration, Kernel
from vllm_kernels.triton.tuning import Choice, ShapeClass, Tunable, Work, forced

REGISTERS = 65536
THREADS = 2048
WARP = 32
RESERVED = 1024
"""Bytes of shared memory that the driver takes of each program."""
UNDER_WAY = 48 * 1024
"""Bytes that a multiprocessor should have asked memory for at any time; more gains nothing. By Little's law an H100's
3.35 TB/s at 700 ns are 18 KB for each of 132, and they do not all ask evenly."""


def candidates_of(tunable: Tunable, shape: ShapeClass, family: str, most: int) -> list[Choice]:
    """Those that may fit the shared memory, the rule's own first, then what is nearest to it; at most ``most``."""
    values = tunable.candidates(**shape)
    rule = tunable.rule(**shape)
    every = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    room = SHARED_MEMORY[family]
    fitting = [
        choice for choice in every if tunable.work(**shape, **choice).shared_bytes(choice.get("num_stages", 1)) <= room
    ]
    return sorted(fitting, key=lambda choice: distance(choice, rule))[:most]


def distance(choice: Choice, other: Choice) -> float:
    """Doublings and halvings between two choices; warps count by what each has of a tile."""
    found = sum(abs(math.log2(value / other[name])) for name, value in choice.items() if name != "num_warps")
    return found + abs(_of_warp(choice) - _of_warp(other))


def _of_warp(choice: Choice) -> float:
    sizes = [choice.get(name, 1) for name in ("BLOCK", "BLOCK_M", "BLOCK_N", "ROWS")]
    return math.log2(math.prod(sizes) / choice["num_warps"])


def configurations_of(
    kernel: Kernel, tunable: Tunable, shape: ShapeClass, choice: Choice, family: str
) -> list[Configuration]:
    """The kernel's configurations that a choice is for: those that are others when another is made."""
    never = {**tunable.rule(**shape), "num_warps": 3}  # as no candidate has
    with forced(tunable, shape, never):
        others = {configuration.label for configuration in kernel.configurations(family)}
    with forced(tunable, shape, choice):
        every = kernel.configurations(family)
    return [configuration for configuration in every if configuration.label not in others]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a choice takes: registers of a thread, bytes of it that were spilled, shared bytes of a program, and the
    instructions of a turn of its first loop, which is the one that goes over most of its work."""

    registers: int
    spilled: int
    shared: int
    instructions: int
    error: str | None = None


def facts_of(kernel: Kernel, tunable: Tunable, shape: ShapeClass, choice: Choice, family: str) -> Facts:
    """Compile one configuration of a choice, from the middle of the list; ``aot`` compiles all of what was chosen."""
    found = configurations_of(kernel, tunable, shape, choice, family)
    compiled = compile_for(kernel, found[len(found) // 2], int(family[3:]), with_loops=True)
    instructions = compiled.loops[0].instructions if compiled.loops else 0
    return Facts(compiled.registers, compiled.spilled, compiled.shared, instructions, compiled.error)


def programs(facts: Facts, num_warps: int, family: str) -> int:
    """That a multiprocessor holds at the same time."""
    threads = WARP * num_warps
    by_registers = REGISTERS // (-(-max(facts.registers, 1) // 8) * 8 * threads)
    by_shared = (SHARED_MEMORY[family] + RESERVED) // (facts.shared + RESERVED)
    return min(by_registers, by_shared, THREADS // threads)


def rank(choice: Choice, facts: Facts, work: Work, rule: Choice, family: str) -> tuple[Any, ...]:
    """The lower, the better, by figures of the compiler alone; what they do not decide, the rule does.

    Spills come first. Then a program bound by memory wants enough bytes under way, and one bound by products a large
    tile, whose loads are hidden by the turn before (three stages) or by another program. Then the fewer instructions
    for a byte or an entry of the tile, the better: steps of 9 % count.
    """
    num_stages, held = choice.get("num_stages", 1), programs(facts, choice["num_warps"], family)
    if work.bound == "memory":
        busy = _busy(choice, facts, held, max(work.stage_bytes, 1))
        under_way = held * work.stage_bytes * max(num_stages - 1, 1)
        wanted = -(min(under_way, UNDER_WAY) // (8 * 1024))
        return facts.error is not None, facts.spilled, wanted, busy, distance(choice, rule)
    hidden = num_stages >= 3 or held >= 2
    area = min(work.area, 128 * 128)
    busy = _busy(choice, facts, held, work.area * choice.get("BLOCK_K", 1))
    return facts.error is not None, facts.spilled, not hidden, -area, busy, distance(choice, rule)


def _busy(choice: Choice, facts: Facts, held: int, work: int) -> int:
    """Steps of 9 %: the clocks in which a multiprocessor's four schedulers start a turn's instructions, for each unit
    of its work. One with ``n`` warps finds one that is ready in about ``n / (n + 1)`` of all clocks: a rule of thumb.
    """
    of_scheduler = held * choice["num_warps"] / 4
    clocks = choice["num_warps"] * max(facts.instructions, 1) * (of_scheduler + 1) / of_scheduler
    return round(8 * math.log2(clocks / work))
