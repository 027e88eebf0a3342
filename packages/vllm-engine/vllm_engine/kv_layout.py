"""How the KV cache is laid out: what each layer needs, and how layers share blocks. Plain data, no tensors.

One pool of equal blocks serves all groups. A group is a set of layers with the same attention span; a block
that belongs to a group holds ``block_size`` tokens of each of its layers. Layer ``i`` of every group lives in
cache tensor ``i``, so that a block id means the same piece of memory for whichever group owns it.
"""

from dataclasses import dataclass

from vllm_kernels.cache_format import CacheFormat, head_bytes


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """What one attention layer keeps per token. ``sliding_window``: tokens it can see, itself included; None is all."""

    num_kv_heads: int
    head_dim: int
    cache_format: CacheFormat
    sliding_window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token, scales included."""
        return 2 * self.num_kv_heads * head_bytes(self.cache_format, self.head_dim)


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers (by index in the model) that share one block table."""

    layers: tuple[int, ...]
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class KVCacheLayout:
    """The whole cache. Block 0 is never given out: padding and blocks that slid out of the window point at it."""

    num_blocks: int
    block_size: int
    groups: tuple[KVGroup, ...]
