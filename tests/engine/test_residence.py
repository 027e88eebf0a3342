"""Memory that tensors live in is given back and taken again; what they hold comes back, or is known to be lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.models.tiny import FAMILIES, make_tiny_model
from vllm_engine.config.decoder_file import load_decoder_config
from vllm_engine.config.groups import LoadConfig, ModelConfig
from vllm_engine.execution import residence
from vllm_engine.execution.memory import DeviceMemory
from vllm_engine.execution.residence import DeviceResidence, PageResidence
from vllm_engine.loading.loader import fill_weights, load_model


class MainMemoryGpu:
    """A GPU whose memory is torch's own in main memory. It notes how many bytes there were when it was waited for."""

    kind = "cuda"
    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.storages: list[torch.UntypedStorage] = []
        self.waits: list[int] = []
        self.num_releases = 0

    def memory(self, weights: int) -> DeviceMemory:
        return DeviceMemory(2**30, 2**30 - self.num_bytes, weights)

    def synchronize(self) -> None:
        self.waits.append(self.num_bytes)

    def release_unused(self) -> None:
        self.num_releases += 1

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages)


class Tensors:
    """Some of all kinds: tied, of odd sizes and types, empty, and with a view that somebody keeps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        matrix = torch.randn(13, 7, dtype=torch.bfloat16)
        self.tied = [nn.Parameter(matrix, requires_grad=False), matrix]
        self.others = [torch.randn(5), torch.randint(0, 200, (3, 3), dtype=torch.uint8), torch.empty(0), torch.ones(())]
        self.view = matrix[2:9, 1:]
        self.all = [*self.tied, *self.others]
        self.held = [tensor.clone() for tensor in (*self.all, self.view)]

    def check_same(self) -> None:
        for tensor, held in zip((*self.all, self.view), self.held, strict=True):
            assert torch.equal(tensor, held)

    def check_zero(self) -> None:
        assert not any(bool(tensor.any()) for tensor in (*self.all, self.view))

    def on(self, gpu: MainMemoryGpu) -> DeviceResidence:
        gpu.storages = list({t.data_ptr(): t.untyped_storage() for t in self.all if t.numel()}.values())
        return DeviceResidence(self.all, gpu)  # type: ignore[arg-type]


@pytest.fixture(params=[64, 100, 1 << 26])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(residence, "BLOCK", request.param)
    yield request.param


@pytest.mark.usefixtures("block")
def test_what_is_offloaded_comes_back_in_the_same_tensors() -> None:
    tensors, gpu = Tensors(), MainMemoryGpu()
    memory = tensors.on(gpu)
    full = gpu.num_bytes
    assert full == 13 * 7 * 2 + 5 * 4 + 9 + 4
    for _ in range(2):
        memory.offload()
        assert gpu.num_bytes == 0
        assert memory.restore() is True
        assert gpu.num_bytes == full
        tensors.check_same()
    # Copies were waited for while both sides were there.
    assert gpu.waits == [full] * 4
    tensors.tied[0][4, 4] = 77
    assert tensors.tied[1][4, 4] == tensors.view[2, 3] == 77


def test_what_is_discarded_is_zero() -> None:
    tensors, gpu = Tensors(), MainMemoryGpu()
    memory = tensors.on(gpu)
    memory.discard()
    assert gpu.num_bytes == 0
    assert memory.restore() is False
    tensors.check_zero()


def test_what_is_offloaded_can_be_discarded_then() -> None:
    tensors, gpu = Tensors(), MainMemoryGpu()
    memory = tensors.on(gpu)
    memory.offload()
    memory.discard()
    assert memory.restore() is False
    tensors.check_zero()


def test_without_enough_memory_nothing_is_taken_and_it_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, gpu = Tensors(), MainMemoryGpu()
    memory = tensors.on(gpu)
    memory.offload()
    resize = torch.UntypedStorage.resize_

    def taken_by_others(storage: torch.UntypedStorage, size: int) -> None:
        if gpu.num_bytes + size > 200:
            raise torch.OutOfMemoryError("out of memory")
        resize(storage, size)

    with monkeypatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "resize_", taken_by_others)
        with pytest.raises(torch.OutOfMemoryError):
            memory.restore()
    assert gpu.num_bytes == 0
    assert gpu.num_releases == 1
    assert memory.restore() is True
    tensors.check_same()


def test_without_enough_main_memory_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, gpu = Tensors(), MainMemoryGpu()
    memory = tensors.on(gpu)

    def no_memory(*_: object, **__: object) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", no_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            memory.offload()
    tensors.check_same()


def test_pages_go_back_in_place() -> None:
    tensors = Tensors()
    addresses = [tensor.data_ptr() for tensor in tensors.all]
    memory = PageResidence(tensors.all)
    memory.offload()
    assert memory.restore() is True
    tensors.check_same()
    memory.discard()
    tensors.check_zero()
    assert memory.restore() is False
    assert [tensor.data_ptr() for tensor in tensors.all] == addresses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", [None, "int8", "int4", "fp8"])
def test_every_weight_of_a_model_is_dropped_and_read_again(family: str, quantization: str, tmp_path: Path) -> None:
    make_tiny_model(family, tmp_path)
    settings = ModelConfig(model=str(tmp_path), dtype="bfloat16", max_model_len=128, quantization=quantization)
    load = LoadConfig(use_tqdm_on_load=False)
    model = load_model(tmp_path, load_decoder_config(tmp_path, {}), settings, load, "cpu")
    ids = torch.arange(model.config.hidden_size // 2)

    def numbers() -> list[Tensor]:
        """All of them, read another way than by their tensors."""
        return [*model.state_dict().values(), *(weight.rows(ids) for weight in model.linear_weights())]

    before = [tensor.clone() for tensor in numbers()]
    assert len(before) > 10
    memory = PageResidence(model.weight_tensors())
    memory.discard()
    assert not any(bool(tensor.any()) for tensor in numbers())
    assert memory.restore() is False
    fill_weights(model, tmp_path, settings, load)
    assert all(torch.equal(now, then) for now, then in zip(numbers(), before, strict=True))
