import pytest
import torch

from vllm_kernels.ops.add import add


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1,), (3, 37), (5, 4, 1001)])
def test_sums_are_rounded_once(face, num_threads, dtype, shape):
    torch.manual_seed(0)
    x, y = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    result = add(x, y)
    assert result.dtype == dtype
    assert torch.equal(result, (x.double() + y.double()).to(dtype))


def test_any_strides_will_do(face):
    x = torch.randn(6, 8)
    assert torch.equal(add(x.t(), x[:, ::1].t()), 2 * x.t())
    assert torch.equal(add(x[::2], x[1::2]), x[::2] + x[1::2])


@pytest.mark.parametrize(
    ("y", "message"), [(torch.zeros(2, 4), "y must have shape"), (torch.zeros(2, 3, dtype=torch.float16), "y must")]
)
def test_what_does_not_fit_is_refused(y, message):
    with pytest.raises(ValueError, match=message):
        add(torch.zeros(2, 3), y)
