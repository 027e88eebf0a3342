from collections.abc import Iterator

import torch

from vllm_kernels.ops.lora import LoRAMetadata, LoRAWeights


def lora_shrink(x: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    low = x.new_zeros(1, len(weights.slice_sizes), len(x), weights.max_rank, dtype=wide)
    for adapter, tokens in _tokens_of_adapters(metadata, x.device):
        rows = x[tokens].to(wide)
        for number, rank in enumerate(weights.ranks_host[adapter]):
            if rank:
                low[0, number, tokens, :rank] = rows @ weights.a[adapter, number, :rank].to(wide).T
    return low


def lora_expand(out: torch.Tensor, low: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> None:
    for adapter, tokens in _tokens_of_adapters(metadata, out.device):
        start = 0
        for number, (size, rank) in enumerate(zip(weights.slice_sizes, weights.ranks_host[adapter], strict=True)):
            columns = slice(start, start + size)
            start += size
            if rank:
                rounded = low[:, number, tokens, :rank].sum(0).to(out.dtype).to(low.dtype)
                added = rounded @ weights.b[adapter, columns, :rank].to(low.dtype).T
                added = added.mul_(weights.scales[adapter, number])
                out[tokens, columns] = added.add_(out[tokens, columns]).to(out.dtype)


def _tokens_of_adapters(metadata: LoRAMetadata, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """Each adapter that has tokens, and which."""
    for adapter in sorted(set(metadata.adapters_host) - {-1}):
        tokens = [token for token, of in enumerate(metadata.adapters_host) if of == adapter]
        yield adapter, torch.tensor(tokens, device=device)
