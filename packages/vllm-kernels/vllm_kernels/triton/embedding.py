import torch
import triton
import triton.language as tl

from vllm_kernels.triton.dependent_launch import wait_for_earlier
from vllm_kernels.triton.kernel import FLOATS, Configuration, Kernel, pointer

BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows"])
def embedding_kernel(
    ids, table, out, num_rows, scale, SIZE: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr
):
    """One row of the table for one token, BLOCK columns of it; zeros for an id outside of the table."""
    wait_for_earlier(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token)
    known = tl.where((row >= 0) & (row < num_rows), SIZE, 0)
    values = tl.load(table + row * SIZE + column, mask=column < known, other=0.0)
    if SCALED:
        values = (values.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + token * SIZE + column, values, mask=column < SIZE)


def embedding(ids: torch.Tensor, table: torch.Tensor, scale: float | None) -> torch.Tensor:
    if table.dtype not in FLOATS or not table.is_contiguous():
        from vllm_kernels.eager import embedding as eager

        return eager.embedding(ids, table, scale)
    num_rows, size = table.shape
    out = table.new_empty(len(ids), size)
    lookup.launch(
        (len(ids), triton.cdiv(size, BLOCK)),
        ids.contiguous(),
        table,
        out,
        num_rows,
        1.0 if scale is None else torch.tensor(scale, dtype=table.dtype).item(),  # rounded: models were trained so
        SIZE=size,
        BLOCK=BLOCK,
        SCALED=scale is not None,
    )
    return out


def _configurations(family: str) -> list[Configuration]:
    return [
        Configuration(
            {"ids": "*i64", "table": pointer(dtype), "out": pointer(dtype), "num_rows": "i32", "scale": "fp32"},
            {"SIZE": size, "BLOCK": BLOCK, "SCALED": scaled},
        )
        for dtype in FLOATS
        for size in (896, 1024, 2048, 4096, 8192)
        for scaled in (False, True)
    ]


lookup = Kernel(embedding_kernel, _configurations)
