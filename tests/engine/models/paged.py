"""Running one of our models over a paged KV cache by hand: what the model runner does, small enough to see through."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.kernels.paged import format_of, poison
from vllm_engine.layers.attention import AttentionContext
from vllm_engine.models.causal_lm import CausalLM
from vllm_kernels.ops.attention import AttentionMetadata
from vllm_kernels.ops.cache import allocate_kv_cache


class PagedRun:
    """Sequences that advance side by side through a cache of scattered blocks.

    Every distinct window has its own KV group with its own, differently shuffled block tables. What a table has
    beyond a sequence points at block 0, which is full of NaN, and so does the rest of the cache until it is written.
    """

    def __init__(self, model: CausalLM, num_seqs: int, max_len: int, block_size: int = 7) -> None:
        self.model = model
        self.block_size = block_size
        specs = model.kv_specs([format_of(model.dtype)] * model.config.num_layers)
        windows = list(dict.fromkeys(spec.sliding_window for spec in specs))
        self.group_of_layer = [windows.index(spec.sliding_window) for spec in specs]
        blocks_each = -(-max_len // block_size)
        num_blocks = 1 + num_seqs * blocks_each
        self.caches = [
            allocate_kv_cache(num_blocks, block_size, spec.num_kv_heads, spec.head_dim, spec.cache_format, "cpu")
            for spec in specs
        ]
        for cache in self.caches:
            poison(cache)
        generator = torch.Generator().manual_seed(0)
        self.tables = [
            (1 + torch.randperm(num_blocks - 1, generator=generator)).view(num_seqs, blocks_each).int() for _ in windows
        ]
        self.computed = [0] * num_seqs

    @torch.inference_mode()
    def step(self, new_tokens: dict[int, Sequence[int]], *, only_last: bool = False) -> dict[int, Tensor]:
        """Compute the next tokens of some sequences in one batch; float32 logits ``[n, V]`` of each.

        ``only_last`` asks for the last one of each sequence, which a model may take as leave to give no others.
        """
        order = list(new_tokens)
        lens = [len(new_tokens[seq]) for seq in order]
        starts = [self.computed[seq] for seq in order]
        seq_lens = [start + length for start, length in zip(starts, lens, strict=True)]
        positions = torch.cat([torch.arange(start, end) for start, end in zip(starts, seq_lens, strict=True)])
        rows = torch.cat([torch.full((length,), seq) for seq, length in zip(order, lens, strict=True)])
        context = AttentionContext(
            metadata=[self._metadata(table, order, lens, seq_lens) for table in self.tables],
            slot_mappings=[
                table[rows, positions // self.block_size].long() * self.block_size + positions % self.block_size
                for table in self.tables
            ],
            group_of_layer=self.group_of_layer,
            kv_caches=self.caches,
            wanted=torch.tensor(lens).cumsum(0) - 1 if only_last else None,
        )
        ids = torch.tensor([token for seq in order for token in new_tokens[seq]])
        hidden = self.model(ids, positions, context)
        for seq, end in zip(order, seq_lens, strict=True):
            self.computed[seq] = end
        if only_last and len(hidden) == len(order):
            lens = [1] * len(order)
        assert hidden.shape[0] == sum(lens)
        return dict(zip(order, self.model.compute_logits(hidden).split(lens), strict=True))

    def _metadata(self, table: Tensor, order: list[int], lens: list[int], seq_lens: list[int]) -> AttentionMetadata:
        rows = table[order].clone()
        for row, length in enumerate(seq_lens):
            rows[row, -(-length // self.block_size) :] = 0
        return AttentionMetadata(
            query_start_loc=torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_table=rows,
            query_lens_host=lens,
            seq_lens_host=seq_lens,
        )
