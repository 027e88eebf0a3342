import pytest
import torch

from vllm_kernels.cpu import native


@pytest.fixture(params=[1, 2])
def num_threads(request):
    """The number of threads that torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=native.LEVELS)
def level(request):
    """Each level of the native kernels; skipped where the machine does not have it."""
    if request.param not in native.machine_levels():
        pytest.skip(f"this machine has no {request.param}")
    with native.use_level(request.param):
        yield request.param
