"""Which layers share a block table, and how many blocks fit the memory."""

from collections.abc import Sequence

from vllm_engine.errors import ConfigError
from vllm_engine.kv_layout import KVCacheLayout, KVGroup, LayerKVSpec


def group_layers(specs: Sequence[LayerKVSpec], *, hybrid: bool = True) -> tuple[KVGroup, ...]:
    """Put layers with the same attention span into groups of equal size.

    The group size is the smallest number of layers of any span, so that models which mix full and sliding-window
    layers (1:1 in Gemma 2, 1:5 in Gemma 3) waste at most part of one group. Groups of full attention come first.
    Layers of unequal shape or format cannot share a block: then each layer is a group member at its own tensor index,
    and all layers form one full-span group, whose block table is right for every span. So they do without ``hybrid``.
    """
    if not hybrid or len({(spec.num_kv_heads, spec.head_dim, spec.cache_format) for spec in specs}) > 1:
        return (KVGroup(tuple(range(len(specs))), None),)
    by_span: dict[int | None, list[int]] = {}
    for index, spec in enumerate(specs):
        by_span.setdefault(spec.sliding_window, []).append(index)
    size = min(len(layers) for layers in by_span.values())
    spans = sorted(by_span, key=lambda span: (span is not None, span or 0))
    return tuple(
        KVGroup(tuple(layers[start : start + size]), span)
        for span in spans
        for layers in [by_span[span]]
        for start in range(0, len(layers), size)
    )


def bytes_per_block(specs: Sequence[LayerKVSpec], groups: Sequence[KVGroup], block_size: int) -> int:
    """Memory of one block id over all cache tensors."""
    tensors = max(len(group.layers) for group in groups)
    per_token = [
        max(specs[group.layers[i]].bytes_per_token for group in groups if i < len(group.layers)) for i in range(tensors)
    ]
    return block_size * sum(per_token)


def blocks_per_request(groups: Sequence[KVGroup], block_size: int, num_tokens: int, step_tokens: int) -> int:
    """Blocks that one request of ``num_tokens`` needs at once, when a step computes up to ``step_tokens`` of them."""
    return sum(blocks_of_group(group, block_size, num_tokens, step_tokens) for group in groups)


def blocks_of_group(group: KVGroup, block_size: int, num_tokens: int, step_tokens: int) -> int:
    """Blocks of one group that a request needs at once, as in ``blocks_per_request``."""
    span = num_tokens
    if group.sliding_window is not None:
        # Window of the first token of the step, the step itself, and a partly used block at each end.
        span = min(num_tokens, group.sliding_window - 1 + step_tokens + block_size)
    return -(-span // block_size)


def plan_layout(
    groups: tuple[KVGroup, ...],
    *,
    block_size: int,
    block_bytes: int,
    memory_bytes: int,
    max_model_len: int,
    max_step_tokens: int,
    max_num_seqs: int,
    num_blocks_override: int | None = None,
    memory_setting: str = "kv_cache_memory_bytes",
) -> KVCacheLayout:
    """Size the cache: as many blocks as fit ``memory_bytes``, but no more than all requests at full length can use.

    Args:
        groups: of the layers.
        block_size: tokens of a block.
        block_bytes: memory of one block id over all cache tensors.
        memory_bytes: what the cache may take.
        max_model_len: tokens of the longest request.
        max_step_tokens: most tokens of a step.
        max_num_seqs: most requests at a time.
        num_blocks_override: so many blocks, whatever they take.
        memory_setting: what ``memory_bytes`` comes from.

    Raises:
        ConfigError: when not even one request of ``max_model_len`` fits; the message says what would.
    """
    needed = blocks_per_request(groups, block_size, max_model_len, max_step_tokens)
    if num_blocks_override is not None:
        num_blocks, source = num_blocks_override, "num_gpu_blocks_override"
    else:
        num_blocks, source = min(memory_bytes // block_bytes, max_num_seqs * needed + 1), memory_setting
    if num_blocks - 1 < needed:
        fitting = longest_request(groups, block_size, max_step_tokens, num_blocks - 1, max_model_len)
        way_out = f"lower max_model_len to {fitting} (or to auto), or raise {source}" if fitting else f"raise {source}"
        raise ConfigError(
            f"the KV cache holds {max(0, num_blocks - 1)} blocks of {block_size} tokens "
            f"({num_blocks * block_bytes / 2**20:.1f} MiB), but one request of max_model_len={max_model_len} needs "
            f"{needed} ({(needed + 1) * block_bytes / 2**20:.1f} MiB): {way_out}",
            field=source,
        )
    return KVCacheLayout(num_blocks=num_blocks, block_size=block_size, groups=groups)


def longest_request(
    groups: Sequence[KVGroup], block_size: int, step_tokens: int, num_blocks: int, max_model_len: int
) -> int:
    """Tokens of the longest request that ``num_blocks`` have room for, at most ``max_model_len``; 0 when none has."""
    low, high = 0, max_model_len
    while low < high:
        middle = (low + high + 1) // 2
        if blocks_per_request(groups, block_size, middle, step_tokens) <= num_blocks:
            low = middle
        else:
            high = middle - 1
    return low
