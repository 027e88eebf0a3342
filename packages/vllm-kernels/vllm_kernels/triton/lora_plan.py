"""Tokens sorted by their adapter and cut into tiles, once per step."""

from dataclasses import dataclass
from itertools import chain

import torch

from vllm_kernels import batch_invariance
from vllm_kernels.ops.lora import LoRAMetadata
from vllm_kernels.transfers import upload

FEW_TOKENS = 128
"""Up to so many tokens of a step, tiles have the fewest rows that a product takes: an adapter has a token or two."""


@dataclass(slots=True)
class Plan:
    """Tiles of tokens that share an adapter. Tile ``i`` has ``counts[i]`` tokens: ``order[first[i]]`` and what follows.

    ``order`` is int32 ``[num_tokens]``: the tokens that have an adapter, sorted by it. ``adapters``, ``first`` and
    ``counts`` are int32 with room for as many tiles as so many tokens can ever need, so that a captured graph serves
    whatever adapters they have; tiles that are not needed have no tokens. All lie in ``numbers``, on the device.
    """

    numbers: torch.Tensor
    order: torch.Tensor
    adapters: torch.Tensor
    first: torch.Tensor
    counts: torch.Tensor
    rows: int

    @property
    def num_tiles(self) -> int:
        """That there is room for."""
        return len(self.adapters)

    def refill(self, metadata: LoRAMetadata) -> None:
        """Other adapters of as many tokens, in the same memory."""
        self.numbers.copy_(upload(_numbers(metadata, self.rows), self.numbers.device), non_blocking=True)


def plan_for(metadata: LoRAMetadata, device: torch.device) -> Plan:
    """Plan of a step, made at the first projection that asks."""
    key = ("triton", device)
    plan: Plan | None = metadata.plans.get(key)
    if plan is None:
        num_tokens = len(metadata.adapters_host)
        rows = rows_of_tile(num_tokens)
        numbers = upload(_numbers(metadata, rows), device)
        tiles = most_tiles(num_tokens, metadata.num_adapters, rows)
        columns = numbers.split(_sizes(num_tokens, metadata.num_adapters, rows))
        order, *of_tiles = columns
        adapters, first, counts = (column[:tiles] for column in of_tiles)
        plan = metadata.plans[key] = Plan(numbers, order[:num_tokens], adapters, first, counts, rows)
    return plan


def rows_of_tile(num_tokens: int) -> int:
    """Tokens of a tile, at most: always as many where the order of a sum, which depends on it, must not change."""
    return 16 if num_tokens <= FEW_TOKENS and not batch_invariance.enabled() else 64


def most_tiles(num_tokens: int, num_adapters: int, rows: int) -> int:
    """Tiles that so many tokens take at most: full ones, and one of each adapter that is not."""
    return min(num_tokens, num_tokens // rows + num_adapters)


def _numbers(metadata: LoRAMetadata, rows: int) -> torch.Tensor:
    """Order, adapters, first and counts one after the other, each beginning at a multiple of 16 bytes."""
    num_tokens = len(metadata.adapters_host)
    order = sorted(range(num_tokens), key=metadata.adapters_host.__getitem__)
    order = order[metadata.adapters_host.count(-1) :]
    tiles: list[tuple[int, int, int]] = []
    for place, token in enumerate(order):
        adapter = metadata.adapters_host[token]
        if tiles and tiles[-1][0] == adapter and tiles[-1][2] < rows:
            tiles[-1] = (adapter, tiles[-1][1], tiles[-1][2] + 1)
        else:
            tiles.append((adapter, place, 1))
    adapters, first, counts = map(list, zip(*tiles, strict=True)) if tiles else ([], [], [])
    sizes = _sizes(num_tokens, metadata.num_adapters, rows)
    padded = [
        column + [0] * (size - len(column))
        for column, size in zip((order, adapters, first, counts), sizes, strict=True)
    ]
    return torch.tensor(list(chain.from_iterable(padded)), dtype=torch.int32)


def _sizes(num_tokens: int, num_adapters: int, rows: int) -> list[int]:
    tiles = most_tiles(num_tokens, num_adapters, rows)
    return [-(-size // 4) * 4 for size in (num_tokens, tiles, tiles, tiles)]
