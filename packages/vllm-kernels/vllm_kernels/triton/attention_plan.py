"""What paged attention works out once per step, on the host, and reuses in every layer."""

from dataclasses import dataclass

import torch

from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import power_of_two

DECODE_ROWS = 16
"""Query rows (tokens times query heads of a KV head) of a tile for sequences with few new tokens."""
PREFILL_ROWS = 64
"""Of a tile for the others. Wider heads take fewer, for the registers."""
SPLIT_TOKENS = 256
"""A split has at least so many keys: less is not worth merging."""
MOST_SPLITS = 32
PROGRAMS_PER_MULTIPROCESSOR = 2


@dataclass(slots=True)
class Tiles:
    """Tiles of one size, of one launch. Tile ``i`` begins at new token ``first[i]`` of sequence ``seq[i]``.

    ``seq`` and ``first`` are int32 ``[num_tiles]`` on the device; ``rows`` query rows of each, ``splits`` parts of the
    keys of each.
    """

    seq: torch.Tensor
    first: torch.Tensor
    rows: int
    splits: int


@dataclass(slots=True)
class Plan:
    """All work of a step."""

    launches: list[Tiles]

    def refill(self, metadata: AttentionMetadata) -> None:
        """Nothing changes: query lengths stay, and splits are parts of whatever length a sequence has."""


def plan_for(metadata: AttentionMetadata, group: int, head_dim: int, num_kv_heads: int) -> Plan:
    """Plan of a step, made at the first layer that asks.

    Args:
        metadata: of the step.
        group: query heads of a KV head.
        head_dim, num_kv_heads: of the cache.

    Raises:
        ValueError: a sequence has more new tokens than tokens.
    """
    key = ("triton", group, head_dim, num_kv_heads)
    plan: Plan | None = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = _make_plan(metadata, group, head_dim, num_kv_heads)
    return plan


def rows_of_tile(few: bool, group: int, head_dim: int) -> int:
    """Query rows of a tile: a power of two with room for at least one token's heads."""
    wanted = DECODE_ROWS if few else (PREFILL_ROWS if head_dim <= 128 else PREFILL_ROWS // 2)
    return power_of_two(group, wanted)


def splits_of(programs: int, longest: int, processors: int) -> int:
    """Parts of the keys of each tile, a power of two: enough programs for the device, and none with a few keys only."""
    missing = PROGRAMS_PER_MULTIPROCESSOR * processors // max(programs, 1)
    useful = min(missing, -(-longest // SPLIT_TOKENS), MOST_SPLITS)
    return 1 << (max(useful, 1).bit_length() - 1)


def _make_plan(metadata: AttentionMetadata, group: int, head_dim: int, num_kv_heads: int) -> Plan:
    few_rows = rows_of_tile(True, group, head_dim)
    few: list[tuple[int, int]] = []
    many: list[tuple[int, int]] = []
    longest = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        if query_len * group <= few_rows:
            if query_len:
                few.append((seq, 0))
                longest = max(longest, seq_len)
        else:
            tokens = rows_of_tile(False, group, head_dim) // group
            many.extend((seq, first) for first in range(0, query_len, tokens))
    device = metadata.seq_lens.device
    launches = []
    if many:
        launches.append(_tiles(many, rows_of_tile(False, group, head_dim), 1, device))
    if few:
        splits = splits_of(len(few) * num_kv_heads, longest, multiprocessors(device))
        launches.append(_tiles(few, few_rows, splits, device))
    return Plan(launches)


def _tiles(places: list[tuple[int, int]], rows: int, splits: int, device: torch.device) -> Tiles:
    seq, first = torch.tensor(places, dtype=torch.int32).T.contiguous().to(device)
    return Tiles(seq, first, rows, splits)
