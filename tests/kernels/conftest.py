import pytest
import torch


@pytest.fixture(params=[1, 2])
def num_threads(request):
    """The number of threads that torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
