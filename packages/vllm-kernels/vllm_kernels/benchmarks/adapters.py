"""LoRA: the two products of a projection whose tokens have several adapters."""

from collections.abc import Iterator

import torch

from vllm_kernels.benchmarks.case import Case, Sizes
from vllm_kernels.ops.lora import LoRAMetadata, allocate_lora_weights, lora_expand, lora_shrink, store_adapter

_ROWS = slice(0, 4)
_SCALE = 0.5


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Iterator[Case]:
    """All of them, each made as it is asked for: the query, key and value projection of a Llama 8B."""
    for tokens in (sizes(64, 5), sizes(4096, 20)):
        yield _adapters(tokens, sizes(8, 2), sizes(16, 4), device, dtype, sizes)


def _adapters(tokens: int, adapters: int, rank: int, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Case:
    in_features, slices = sizes(4096, 48), (sizes(4096, 48), sizes(1024, 24), sizes(1024, 24))
    x = torch.randn(tokens, in_features, device=device).to(dtype)
    out = torch.zeros(tokens, sum(slices), device=device, dtype=dtype)
    weights = allocate_lora_weights(adapters, slices, rank, in_features, dtype, device)
    made = [
        [
            (torch.randn(rank, in_features, device=device).to(dtype), torch.randn(size, rank, device=device).to(dtype))
            for size in slices
        ]
        for _ in range(adapters)
    ]
    for place, factors in enumerate(made):
        store_adapter(weights, place, factors, _SCALE)
    metadata = LoRAMetadata([token % adapters for token in range(tokens)], adapters)

    def run() -> torch.Tensor:
        lora_expand(out, lora_shrink(x, weights, metadata), weights, metadata)
        return out

    def rows(result: torch.Tensor) -> torch.Tensor:
        """Before anything else is added to them."""
        found = result[_ROWS].clone()
        result.zero_()
        return found

    def exact() -> torch.Tensor:
        return torch.stack(
            [
                _SCALE * torch.cat([b.double() @ (a.double() @ x[token].double()) for a, b in made[token % adapters]])
                for token in range(min(tokens, 4))
            ]
        )

    factors_bytes = adapters * rank * (in_features * len(slices) + sum(slices)) * x.itemsize
    return Case(
        "LoRA",
        f"{tokens} tokens, {adapters} adapters of rank {rank}, {in_features} to {sum(slices)}",
        run,
        rows,
        exact,
        1e-2,
        x.nbytes + factors_bytes + 2 * out.nbytes,
        2 * tokens * rank * (in_features * len(slices) + sum(slices)),
    )
