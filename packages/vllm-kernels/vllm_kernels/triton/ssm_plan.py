"""Tokens of each sequence cut into tiles, once per step."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_kernels.ops.ssm import SSMMetadata
from vllm_kernels.transfers import upload_arrays


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile ``i`` begins at token ``first[i]`` of sequence ``seq[i]``; tiles of a sequence follow one another.

    ``seq`` and ``first`` are int32 ``[num_tiles]``, ``starts`` is int32 ``[num_seqs + 1]``: the first tile of each
    sequence; all on the device.
    """

    seq: torch.Tensor
    first: torch.Tensor
    starts: torch.Tensor


def tiles_for(metadata: SSMMetadata, size: int) -> Tiles:
    """Tiles of ``size`` tokens, made at the first layer that asks."""
    key = ("triton", size)
    tiles: Tiles | None = metadata.plans.get(key)
    if tiles is None:
        seqs: list[int] = []
        firsts: list[int] = []
        starts = [0]
        for seq, length in enumerate(metadata.query_lens_host):
            of_seq = range(0, length, size)
            seqs.extend([seq] * len(of_seq))
            firsts.extend(of_seq)
            starts.append(len(seqs))
        device = metadata.query_start_loc.device
        arrays = [np.array(numbers, dtype=np.int32) for numbers in (seqs, firsts, starts)]
        tiles = metadata.plans[key] = Tiles(*upload_arrays(arrays, device))
    return tiles
