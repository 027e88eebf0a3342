import gc
import itertools
import threading

import psutil
import pytest
import torch

from vllm_kernels.cpu.pages import CHUNK, clear, zeros


def mapped() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024


@pytest.mark.parametrize("nbytes", [0, 1, 100, 4096, 3 << 20, CHUNK - 1, CHUNK, CHUNK + 5])
def test_memory_is_zero_aligned_and_of_the_size_asked_for(nbytes: int) -> None:
    memory = zeros(nbytes)
    assert memory.shape == (nbytes,)
    assert memory.dtype == torch.uint8
    assert memory.data_ptr() % 4096 == 0
    assert not memory.any()


def test_tensors_do_not_overlap_and_small_ones_lie_close_together() -> None:
    sizes = [5, 70_000, 4096, 1 << 20, 3, 30 << 20] * 4
    tensors = [zeros(size) for size in sizes]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    assert all(bool((tensor == number + 1).all()) for number, tensor in enumerate(tensors))
    places = [zeros(1000).data_ptr() for _ in range(8)]
    # One of them may begin a new chunk.
    assert sum(later - earlier == 4096 for earlier, later in itertools.pairwise(places)) >= 6


def test_threads_get_memory_of_their_own() -> None:
    found: list[torch.Tensor] = []

    def work(number: int) -> None:
        for _ in range(50):
            memory = zeros(10_000)
            memory.fill_(number)
            found.append(memory)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({memory.data_ptr() for memory in found}) == 200
    assert all(len(memory.unique()) == 1 for memory in found)


def test_a_chunk_goes_back_with_the_last_of_its_tensors() -> None:
    keep = zeros(CHUNK - 1)  # fills a chunk
    gc.collect()
    before = mapped()
    many = [zeros(CHUNK // 2 - 4096) for _ in range(20)]
    grown = mapped() - before
    assert grown >= 9 * CHUNK
    del many
    gc.collect()
    assert mapped() - before <= grown - 8 * CHUNK
    assert len(keep) == CHUNK - 1


@pytest.mark.parametrize("allocate", [zeros, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8)])
@pytest.mark.parametrize("nbytes", [1, 100, 4096, 3 << 20, CHUNK + 5])
def test_what_is_cleared_is_zero_stays_where_it_is_and_takes_no_memory(allocate, nbytes: int) -> None:
    before, *cleared, after = (allocate(size) for size in (5000, 4096, nbytes, 8192, 5000))
    for tensor in (before, *cleared, after):
        tensor.fill_(7)
    addresses, process = [tensor.data_ptr() for tensor in cleared], psutil.Process()
    full = process.memory_info().rss
    clear(*reversed(cleared))
    if nbytes > CHUNK:
        assert full - process.memory_info().rss > nbytes - (1 << 20)
    assert [tensor.data_ptr() for tensor in cleared] == addresses
    assert not any(bool(tensor.any()) for tensor in cleared)
    assert bool((before == 7).all()) and bool((after == 7).all())
    cleared[1].fill_(3)
    assert bool((cleared[1] == 3).all())
    assert not cleared[0].any() and not cleared[2].any()
