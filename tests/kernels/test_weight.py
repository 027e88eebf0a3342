"""What walks over the memory of a weight, to measure, move or drop it, must meet every byte."""

from collections.abc import Callable

import pytest
import torch

from vllm_kernels.backend import use_face
from vllm_kernels.ops import fp8, linear, moe, quantization
from vllm_kernels.weight import Weight

ROWS, COLUMNS, EXPERTS = 128, 256, 2
BITS = {"plain": 16, "int8": 8, "int4": 4, "fp8": 8, "experts": 16 * EXPERTS}


def filled(kind: str) -> tuple[Weight, Callable[[], torch.Tensor]]:
    """A weight of random numbers, and what reads all of its rows."""
    torch.manual_seed(0)
    rows, ids = torch.randn(ROWS, COLUMNS), torch.arange(ROWS)
    if kind == "experts":
        experts = moe.new_weight(EXPERTS, ROWS, COLUMNS, torch.bfloat16)
        for expert in range(EXPERTS):
            moe.fill(experts, expert, rows + expert)
        return experts, lambda: torch.stack([experts.rows(expert, ids) for expert in range(EXPERTS)])
    if kind == "fp8":
        weight = fp8.new_weight(ROWS, COLUMNS, torch.bfloat16)
        fp8.fill_fp8(weight, rows.to(torch.float8_e4m3fn), rows.abs().amax(dim=1))
    elif kind == "plain":
        weight = linear.new_weight(ROWS, COLUMNS, torch.bfloat16)
        linear.fill(weight, rows)
    else:
        weight = quantization.new_weight(ROWS, COLUMNS, torch.bfloat16, bits=BITS[kind])
        linear.fill(weight, rows)
    return weight, lambda: weight.rows(ids)


@pytest.mark.parametrize("face", ["reference", "eager", "cpu", "triton"])
@pytest.mark.parametrize("kind", BITS)
def test_every_number_of_a_weight_is_in_its_tensors(face: str, kind: str) -> None:
    if face == "triton":
        pytest.importorskip("triton")
    with use_face(face):
        weight, read = filled(kind)
        before, tensors = read(), list(weight.tensors())
        held = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.view(torch.uint8).fill_(0)
        assert not read().any()
        for tensor, old in zip(tensors, held, strict=True):
            tensor.copy_(old)
        assert torch.equal(read(), before)
    assert weight.nbytes == sum(tensor.nbytes for tensor in tensors)
    stored = BITS[kind] * ROWS * COLUMNS // 8
    # The reference keeps a byte an entry.
    assert stored <= weight.nbytes < 1.3 * stored * (2 if kind == "int4" and face == "reference" else 1)
