"""What is stored in a packed weight comes back rounded once, however its rows came: piece by piece, strided, turned."""

import pytest
import torch

from vllm_kernels.ops.linear import fill, new_weight

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("stored", FLOATS, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_rows_come_back_as_they_were_stored(dtype: torch.dtype, stored: torch.dtype, gated: bool) -> None:
    for size in (1, 7, 32, 33, 96, 130):
        rows = torch.randn(146, size, dtype=torch.float64).to(stored)
        rows[3, 0], rows[70, -1] = torch.inf, -0.0
        wide, tall = rows.repeat_interleave(2, 1)[:, ::2], rows.repeat_interleave(2, 0)[::2]
        for kind in (rows, rows.t().contiguous().t(), wide, tall):
            weight = new_weight(146, size, dtype, gated=gated)
            for start, end in ((0, 5), (5, 77), (77, 78), (78, 146)):
                fill(weight, kind[start:end], start)
            assert torch.equal(weight.rows(torch.arange(146)), kind.to(dtype))
