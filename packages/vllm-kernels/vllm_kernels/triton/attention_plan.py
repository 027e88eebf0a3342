"""What paged attention works out once per step, on the host, and reuses in every layer."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_kernels import batch_invariance
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.transfers import upload_arrays
from vllm_kernels.triton.device import multiprocessors
from vllm_kernels.triton.kernel import power_of_two

DECODE_ROWS = 16
"""Query rows (tokens times query heads of a KV head) of a tile for sequences with few new tokens."""
SPLIT_TOKENS = 256
"""A split has at least so many keys: less is not worth merging."""
MOST_SPLITS = 32
MOST_PROMPT_SPLITS = 8
"""Of the keys of tiles with many rows: a few tokens after a long context have too few tiles for a device."""
MOST_PREFIX_SPLITS = 16
"""Of a common prefix, and of what follows it, so that both together are no more than MOST_SPLITS."""
CASCADE_TOKENS = 256
"""A common prefix of less is not worth a launch of its own,"""
CASCADE_SHARE = 4
"""nor one that is not read so many times less often for it."""
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
class Prefix:
    """The keys that all sequences begin with, for the new tokens of all as if they were one sequence's.

    That sequence has the first row of the block table, and ``query_start_loc`` (int32 ``[2]``) and ``seq_lens``
    (int32 ``[1]``) of its own. ``tiles`` are of its tokens, ``length`` keys are common.
    """

    tiles: Tiles
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    length: int


@dataclass(slots=True)
class Plan:
    """All work of a step. With a ``prefix``, the tiles of ``launches`` see the keys after it only.

    ``part_tokens`` tokens have parts that are merged; ``part_starts`` as of ``parts_of``.
    """

    launches: list[Tiles]
    prefix: Prefix | None
    part_tokens: int
    part_starts: torch.Tensor | None

    def refill(self, metadata: AttentionMetadata) -> None:
        """Nothing changes: query lengths and prefix stay, and splits are parts of whatever length a sequence has.

        Raises ``ValueError`` where a sequence is too short for the prefix.
        """
        if self.prefix is not None and self.prefix.length > _least_context(metadata):
            raise ValueError("a step must have as long a common prefix as the one it follows")


def plan_for(
    metadata: AttentionMetadata, group: int, prefill_rows: int, num_kv_heads: int, block_size: int, cascade: bool
) -> Plan:
    """Plan of a step, made at the first layer that asks.

    Args:
        metadata: of the step.
        group: query heads of a KV head.
        prefill_rows: query rows of a tile for sequences with more than a few new tokens.
        num_kv_heads, block_size: of the cache.
        cascade: whether a common prefix may be attended to once for all: every token must see all of it, and scores
            must not depend on the token's own position.

    Raises:
        ValueError: a sequence has more new tokens than tokens.
    """
    cascade = cascade and metadata.common_prefix_len >= CASCADE_TOKENS and not batch_invariance.enabled()
    key = ("triton", group, prefill_rows, num_kv_heads, block_size, cascade)
    plan: Plan | None = metadata.plans.get(key)
    if plan is None:
        plan = metadata.plans[key] = _make_plan(metadata, group, prefill_rows, num_kv_heads, block_size, cascade)
    return plan


def tables_of(metadata: AttentionMetadata) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``query_start_loc``, ``seq_lens`` and ``block_table`` as kernels read them: entries of a row side by side.

    A copy is made anew by each call, as a captured graph must make it by each replay.
    """
    table = metadata.block_table
    table = table if table.stride(1) == 1 else table.contiguous()
    return metadata.query_start_loc.contiguous(), metadata.seq_lens.contiguous(), table


def rows_of_tile(group: int, wanted: int) -> int:
    """Query rows of a tile: a power of two with room for at least one token's heads."""
    return power_of_two(group, wanted)


def splits_of(programs: int, longest: int, processors: int, most: int = MOST_SPLITS) -> int:
    """Parts of the keys of each tile, a power of two: enough programs for the device, and none with a few keys only."""
    missing = PROGRAMS_PER_MULTIPROCESSOR * processors // max(programs, 1)
    useful = min(missing, -(-longest // SPLIT_TOKENS), most)
    return 1 << (max(useful, 1).bit_length() - 1)


def longest_first(tiles: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Sequences and first tokens or rows of tiles ``(keys, seq, first)``: those with the most keys come first.

    A device starts programs in their order. With the longest ones last, most of it would wait for them at the end.
    """
    return [(seq, first) for _, seq, first in sorted(tiles, key=lambda tile: -tile[0])]


def splits_of_prompts(programs: int, longest: int, processors: int) -> int:
    """The same for tiles with many rows, which have a multiprocessor each, and twice the keys at least."""
    useful = min(processors // max(programs, 1), longest // (2 * SPLIT_TOKENS), MOST_PROMPT_SPLITS)
    return 1 << (max(useful, 1).bit_length() - 1)


def parts_of(
    metadata: AttentionMetadata, sequences: list[int], device: torch.device
) -> tuple[int, torch.Tensor | None]:
    """How many new tokens some sequences have, and where each one's begin among them: int32 ``[num_seqs]``.

    None where there are no others, so that they begin where they do in the step. A long prompt beside a few tokens that
    are cut into parts must not have room for parts, too.
    """
    lengths = np.zeros(len(metadata.query_lens_host), dtype=np.int32)
    lengths[sequences] = [metadata.query_lens_host[seq] for seq in sequences]
    count = int(lengths.sum())
    if count == sum(metadata.query_lens_host):
        return count, None
    (starts,) = upload_arrays([np.cumsum(lengths, dtype=np.int32) - lengths], device)
    return count, starts


def _make_plan(
    metadata: AttentionMetadata, group: int, prefill_rows: int, num_kv_heads: int, block_size: int, cascade: bool
) -> Plan:
    few_rows, many_rows = rows_of_tile(group, DECODE_ROWS), rows_of_tile(group, prefill_rows)
    few: list[tuple[int, int, int]] = []
    many: list[tuple[int, int, int]] = []
    longest = 0
    for seq, (query_len, seq_len) in enumerate(zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"metadata has {query_len} new tokens in a sequence of {seq_len}")
        if query_len * group <= few_rows:
            if query_len:
                few.append((seq_len, seq, 0))
                longest = max(longest, seq_len)
        else:
            tokens = many_rows // group
            context = seq_len - query_len
            many.extend((context + first + tokens, seq, first) for first in range(0, query_len, tokens))
    device = metadata.seq_lens.device
    prefix = None
    if cascade:
        prefix = _prefix_of(metadata, group, many_rows, num_kv_heads, block_size, len(few) + len(many))
    launches = []
    in_parts: list[int] = []
    if many:
        splits = 1
        if prefix is None and not batch_invariance.enabled():
            most_keys = max(keys for keys, _, _ in many)
            splits = splits_of_prompts(len(many) * num_kv_heads, most_keys, multiprocessors(device))
        launches.append(_tiles(longest_first(many), many_rows, splits, device))
        in_parts += [seq for _, seq, _ in many] if splits > 1 else []
    if few:
        own = longest - prefix.length if prefix else longest
        most = MOST_PREFIX_SPLITS if prefix else MOST_SPLITS
        if batch_invariance.enabled():
            most = 1  # where keys are cut depends on how many sequences there are, and on the longest
        splits = splits_of(len(few) * num_kv_heads, own, multiprocessors(device), most)
        launches.append(_tiles(longest_first(few), few_rows, splits, device))
        in_parts += [seq for _, seq, _ in few] if splits > 1 else []
    if prefix is None and in_parts:
        return Plan(launches, None, *parts_of(metadata, in_parts, device))
    return Plan(launches, prefix, sum(metadata.query_lens_host), None)


def _prefix_of(
    metadata: AttentionMetadata, group: int, rows: int, num_kv_heads: int, block_size: int, tiles: int
) -> Prefix | None:
    """The common prefix, if it is worth it: otherwise each of ``tiles`` reads it."""
    length = min(metadata.common_prefix_len, _least_context(metadata)) // block_size * block_size
    num_tokens = sum(metadata.query_lens_host)
    firsts = range(0, num_tokens, rows // group)
    if length < CASCADE_TOKENS or tiles < CASCADE_SHARE * len(firsts):
        return None
    device = metadata.seq_lens.device
    splits = splits_of(len(firsts) * num_kv_heads, length, multiprocessors(device), MOST_PREFIX_SPLITS)
    numbers = np.array([0, num_tokens], dtype=np.int32), np.array([length + num_tokens], dtype=np.int32)
    query_start_loc, seq_lens = upload_arrays(numbers, device)
    tiles_of_prefix = _tiles([(0, first) for first in firsts], rows, splits, device)
    return Prefix(tiles_of_prefix, query_start_loc, seq_lens, length)


def _least_context(metadata: AttentionMetadata) -> int:
    """Tokens before the new ones, of the sequence that has the fewest."""
    lengths = zip(metadata.query_lens_host, metadata.seq_lens_host, strict=True)
    return min((seq_len - query_len for query_len, seq_len in lengths if query_len), default=0)


def _tiles(places: list[tuple[int, int]], rows: int, splits: int, device: torch.device) -> Tiles:
    seq, first = upload_arrays(list(np.array(places, dtype=np.int32).T.copy()), device)
    return Tiles(seq, first, rows, splits)
