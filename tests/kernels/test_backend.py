from pathlib import Path

import pytest
import torch

import vllm_kernels
from vllm_kernels import backend
from vllm_kernels.backend import FACES, face_of, use_face

PACKAGE = Path(vllm_kernels.__file__).parent


def files_of(folder: str) -> set[str]:
    return {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}


def test_cpu_tensors_are_served_by_the_cpu_face():
    assert face_of("norm", torch.device("cpu")).__name__ == "vllm_kernels.cpu.norm"


def test_a_device_without_a_face_of_its_own_is_served_by_the_reference():
    assert face_of("norm", torch.device("meta")).__name__ == "vllm_kernels.reference.norm"


def test_use_face_holds_inside_its_block_only():
    with use_face("reference"):
        assert face_of("norm", torch.device("cpu")).__name__ == "vllm_kernels.reference.norm"
        with use_face("cpu"):
            assert face_of("norm", torch.device("cpu")).__name__ == "vllm_kernels.cpu.norm"
        assert face_of("norm", torch.device("cpu")).__name__ == "vllm_kernels.reference.norm"
    assert face_of("norm", torch.device("cpu")).__name__ == "vllm_kernels.cpu.norm"


def test_an_unknown_face_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="VLLM_KERNELS_FACE must be one of reference, cpu, got 'gpu'"), use_face("gpu"):
        pass


@pytest.mark.parametrize("face", FACES)
def test_every_operation_has_the_same_file_in_every_face(face):
    assert files_of("ops") <= files_of(face)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Sets the variable, which is read once, and forgets it afterwards."""

    def set_face(value: str) -> None:
        monkeypatch.setenv("VLLM_KERNELS_FACE", value)
        backend._from_environment.cache_clear()

    yield set_face
    monkeypatch.undo()
    backend._from_environment.cache_clear()


@pytest.mark.parametrize(("value", "folder"), [("reference", "reference"), ("cpu", "cpu"), ("", "cpu")])
def test_the_environment_variable_overrides_the_choice_by_device(environment, value, folder):
    environment(value)
    assert face_of("norm", torch.device("cpu")).__name__ == f"vllm_kernels.{folder}.norm"


def test_an_unknown_face_in_the_environment_is_refused(environment):
    environment("gpu")
    with pytest.raises(ValueError, match="VLLM_KERNELS_FACE must be one of reference, cpu, got 'gpu'"):
        face_of("norm", torch.device("cpu"))
