"""Torch's own attention (``TORCH_SDPA``) takes tensors of a GPU as well; ``meta`` stands for one."""

from typing import Any

import pytest
import torch

from tests.kernels.one_device import OneDevice
from vllm_kernels.backend import use_face
from vllm_kernels.ops.attention import AttentionMetadata, paged_attention
from vllm_kernels.ops.cache import allocate_kv_cache

DEVICE = torch.device("meta")


@pytest.mark.parametrize(
    "options",
    [{}, {"sliding_window": 3}, {"soft_cap": 5.0}, {"sinks": True}, {"sinks": True, "alibi_slopes": True}],
    ids=["plain", "window", "cap", "sinks", "sinks and slopes"],
)
def test_nothing_that_it_works_out_stays_in_main_memory(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape, dtype=self.dtype))
    heads = {name: torch.empty(4, device=DEVICE) for name in ("sinks", "alibi_slopes") if options.get(name)}
    cache = allocate_kv_cache(8, 4, 2, 16, "int8_per_token_head", DEVICE)
    metadata = AttentionMetadata(
        query_start_loc=torch.empty(4, dtype=torch.int32, device=DEVICE),
        seq_lens=torch.empty(3, dtype=torch.int32, device=DEVICE),
        block_table=torch.empty(3, 4, dtype=torch.int32, device=DEVICE),
        query_lens_host=[1, 6, 1],
        seq_lens_host=[9, 7, 1],
    )
    query = torch.empty(8, 4, 16, dtype=torch.bfloat16, device=DEVICE)
    with use_face("eager"), OneDevice(), torch.inference_mode():
        result = paged_attention(query, cache, metadata, scale=0.1, **options | heads)
    assert result.device == DEVICE
    assert result.shape == query.shape
