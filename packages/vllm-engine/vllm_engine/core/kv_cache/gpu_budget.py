"""What a GPU has left for the KV cache beside what was measured, and the errors that add it up."""

import math
from dataclasses import dataclass

from vllm_engine.execution.memory import DeviceMemory, MemoryUse, NoRoom, amount


@dataclass(frozen=True, slots=True)
class CacheBudget:
    """Bytes for the KV cache; ``setting`` is what to raise for more, ``reason`` how the number came about."""

    num_bytes: int
    setting: str
    reason: str


def gpu_budget(utilization: float, total: int, use: MemoryUse) -> CacheBudget:
    """``utilization`` of all memory is this engine's, whatever other processes have, as long as there is so much.

    Below 0 where the rest of the engine takes more.
    """
    allowed, room = int(utilization * total) - use.own, total - use.others - use.own
    if room < allowed:
        return CacheBudget(room, "gpu_memory_utilization", "what other processes leave")
    return CacheBudget(
        allowed, "gpu_memory_utilization", f"gpu_memory_utilization {utilization:g} of {amount(total)}, less the rest"
    )


def sums(utilization: float, total: int, use: MemoryUse, cache: int) -> str:
    """All bytes of a GPU in one sentence, with the KV cache's."""
    allowed = amount(int(utilization * total))
    return (
        f"{use} + KV cache {amount(cache)} = {amount(use.own + cache)}; gpu_memory_utilization={utilization:g} "
        f"allows {allowed} of {amount(total)}, of which other processes have {amount(use.others)}"
    )


def no_room(utilization: float, memory: DeviceMemory, needed: int, longest: int, fitting: int) -> NoRoom:
    """The error of a GPU on which not even one request fits.

    Args:
        utilization: the setting.
        memory: of the device, with its measured use.
        needed: bytes of one request.
        longest: tokens of that request.
        fitting: tokens of the longest that would fit; 0 for none.
    """
    use = memory.use or MemoryUse(memory.weights, 0, 0, 0, 0)
    enough = math.ceil((use.own + needed) / memory.total * 100) / 100
    field, ways = "", []
    if enough <= 1 and use.own + needed <= memory.total - use.others:
        field, ways = "gpu_memory_utilization", [f"gpu_memory_utilization={enough:g}"]
    if fitting:
        field, ways = field or "max_model_len", [*ways, f"max_model_len={fitting}"]
    text = (
        "the GPU's memory has no room for the KV cache of one request of "
        f"{longest} tokens: {sums(utilization, memory.total, use, needed)}"
    )
    return NoRoom(
        f"{text}: {' or '.join(ways)} is enough" if ways else text,
        field=field or "gpu_memory_utilization",
        solved=bool(ways),
    )
