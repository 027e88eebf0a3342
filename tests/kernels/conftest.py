import pytest
import torch

from vllm_kernels.backend import use_face
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


@pytest.fixture(params=["reference", "eager", *native.LEVELS])
def face(request):
    """Every implementation in turn, the native one at each level of the machine: the name of the face that serves."""
    if request.param not in native.LEVELS:
        with use_face(request.param):
            yield request.param
    elif request.param in native.machine_levels():
        with native.use_level(request.param), use_face("cpu"):
            yield "cpu"
    else:
        pytest.skip(f"this machine has no {request.param}")
