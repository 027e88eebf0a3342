"""The simulated GPU is as strict as a GPU: what would fail there fails here. Run by ``make simulated-gpu``."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.simulated_gpu.facts import NAME, TOTAL
from vllm_kernels.cuda.graph import CudaRecorder
from vllm_kernels.ops.norm import rms_norm
from vllm_kernels.transfers import download

GPU = torch.device("cuda", 0)
simulated = torch.cuda.is_available() and torch.cuda.get_device_name() == NAME
pytestmark = pytest.mark.skipif(not simulated, reason="the GPU is not simulated")


def captured(function: Callable[[], Any], recorder: CudaRecorder | None = None) -> tuple[Callable[[], None], Any]:
    recorder = recorder or CudaRecorder(GPU)
    with recorder.aside():
        recorder.begin()
        try:
            result = function()
        except BaseException:
            recorder.abandon()
            raise
        return recorder.end(), result


def test_tensors_of_two_devices_do_not_meet() -> None:
    here, there = torch.ones(3), torch.ones(3, device=GPU)
    for call in (
        lambda: here + there,
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: torch.cat([here, there]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            call()
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a number may come along


def test_a_kernel_is_not_given_main_memory() -> None:
    from vllm_kernels.backend import use_face

    with use_face("triton"), pytest.raises(ValueError, match="cannot be accessed from Triton"):
        rms_norm(torch.ones(2, 8, device=GPU), torch.ones(8), 1e-5)


def test_what_comes_down_is_there_when_it_was_waited_for() -> None:
    target = torch.zeros(2, pin_memory=True)
    target.copy_(torch.ones(2, device=GPU), non_blocking=True)
    assert target.isnan().all()
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    assert target.tolist() == [1, 1]
    (arrived,) = download(torch.ones(2, device=GPU)).wait()
    assert arrived.tolist() == [1, 1]


def test_what_goes_up_must_stay_as_it_is_until_it_is_there() -> None:
    source = torch.zeros(2).pin_memory()
    source.to(GPU, non_blocking=True)
    source[0] = 1
    with pytest.raises(torch.AcceleratorError, match="was written to while a copy"):
        torch.cuda.synchronize()
    source.to(GPU, non_blocking=True)
    torch.cuda.synchronize()
    source[0] = 2


def test_a_replay_computes_what_the_memory_holds_then_and_a_capture_nothing() -> None:
    x, y = torch.ones(3, device=GPU), torch.zeros(3, device=GPU)
    replay, result = captured(lambda: y.add_(x * 2).sum())
    assert y.tolist() == [0, 0, 0]
    replay()
    x.fill_(5)
    replay()
    assert y.tolist() == [12, 12, 12] and result.item() == 36


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.empty_cache(),
    ],
)
def test_nothing_that_waits_is_captured(call: Callable[[torch.Tensor], Any]) -> None:
    x = torch.ones(3, device=GPU)
    with pytest.raises(RuntimeError, match="capturing"):
        captured(lambda: call(x))
    replay, result = captured(lambda: x + 1)  # and the next capture is as if nothing had been
    replay()
    assert result.tolist() == [2, 2, 2]


def test_waits_can_be_forbidden() -> None:
    x = torch.ones(3, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.sum().item()
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(3).to(GPU)
        torch.ones(3).pin_memory().to(GPU, non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_knows_addresses_and_not_tensors() -> None:
    held = [torch.ones(2**21, device=GPU)]
    replay, _ = captured(lambda: held[0] + 1)
    replay()
    held.clear()
    torch.cuda.empty_cache()
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        replay()


def test_graphs_of_one_pool_overwrite_what_the_others_let_go_of() -> None:
    recorder = CudaRecorder(GPU)
    x = torch.ones(256, device=GPU)
    first, result = captured(lambda: recorder.alias(x + 1), recorder)
    second, _ = captured(lambda: recorder.alias(x + 7), recorder)
    first()
    assert result[0].item() == 2
    second()
    assert result[0].item() == 8


def test_new_memory_and_memory_that_was_given_back_hold_nothing() -> None:
    assert torch.empty(100, device=GPU).isnan().all()
    assert (torch.empty(100, dtype=torch.int32, device=GPU) == -1).all()


def test_memory_is_counted_and_ends() -> None:
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    assert total == TOTAL
    taken = torch.empty(TOTAL // 4, dtype=torch.uint8, device=GPU)
    assert free - torch.cuda.mem_get_info()[0] == TOTAL // 4
    before = torch.cuda.memory_stats()["num_ooms"]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(TOTAL, dtype=torch.uint8, device=GPU)
    assert torch.cuda.memory_stats()["num_ooms"] == before + 1
    del taken
    assert torch.cuda.mem_get_info()[0] < free, "torch keeps it"
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] == free
