import torch

from vllm_kernels.ops.lora import LoRAMetadata, LoRAWeights


def lora_shrink(x: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    low = x.new_zeros(1, len(weights.slice_sizes), len(x), weights.max_rank, dtype=wide)
    for token, adapter in enumerate(metadata.adapters_host):
        for number in range(len(weights.slice_sizes)) if adapter >= 0 else ():
            rank = weights.ranks_host[adapter][number]
            low[0, number, token, :rank] = weights.a[adapter, number, :rank].to(wide) @ x[token].to(wide)
    return low


def lora_expand(out: torch.Tensor, low: torch.Tensor, weights: LoRAWeights, metadata: LoRAMetadata) -> None:
    for token, adapter in enumerate(metadata.adapters_host):
        start = 0
        for number, size in enumerate(weights.slice_sizes):
            columns = slice(start, start + size)
            start += size
            rank = weights.ranks_host[adapter][number] if adapter >= 0 else 0
            if rank:
                rounded = low[:, number, token, :rank].sum(0).to(out.dtype).to(low.dtype)
                added = weights.b[adapter, columns, :rank].to(low.dtype) @ rounded
                added = weights.scales[adapter, number] * added
                out[token, columns] = (out[token, columns].to(low.dtype) + added).to(out.dtype)
