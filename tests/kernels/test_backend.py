import threading
from pathlib import Path

import pytest
import torch

import vllm_kernels
from vllm_kernels import backend
from vllm_kernels.backend import FACES, choose_faces, face_of, use_face
from vllm_kernels.ops.norm import fused_add_rms_norm, rms_norm
from vllm_kernels.reference import norm as reference_norm

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
    words = "VLLM_KERNELS_FACE must be one of reference, eager, cpu, triton, got 'gpu'"
    with pytest.raises(ValueError, match=words), use_face("gpu"):
        pass


def served(op: str, function: str | None = None) -> str:
    """Name of the face that serves a CPU tensor."""
    return face_of(op, torch.device("cpu"), function).__name__.split(".")[1]


def test_a_choice_holds_for_its_operations_inside_its_block_only():
    with choose_faces({"attention": "reference", "norm.rms_norm": "reference"}):
        assert served("attention") == "reference"
        assert served("norm", "rms_norm") == "reference"
        assert served("norm", "layer_norm") == "cpu"
        assert served("cache") == "cpu"
        with choose_faces({"attention": "cpu"}):
            assert served("attention") == "cpu"
            assert served("norm", "rms_norm") == "reference"
        assert served("attention") == "reference"
    assert served("attention") == "cpu"


def test_a_choice_for_one_function_wins_over_that_for_its_file():
    with choose_faces({"norm": "reference", "norm.rms_norm": "cpu"}):
        assert served("norm", "rms_norm") == "cpu"
        assert served("norm", "fused_add_rms_norm") == "reference"


def test_a_choice_is_of_its_thread():
    names = []
    with choose_faces({"norm": "reference"}):
        other = threading.Thread(target=lambda: names.append(served("norm")))
        other.start()
        other.join()
    assert names == ["cpu"]


def test_one_face_for_all_wins_over_a_choice(environment):
    with choose_faces({"norm": "reference"}):
        with use_face("cpu"):
            assert served("norm") == "cpu"
        environment("cpu")
        assert served("norm") == "cpu"


def test_a_choice_of_an_unknown_face_is_refused():
    with (
        pytest.raises(ValueError, match="norm must be one of reference, eager, cpu, triton, got 'gpu'"),
        choose_faces({"norm": "gpu"}),
    ):
        pass


@pytest.mark.parametrize("function", [rms_norm, fused_add_rms_norm])
def test_a_norm_asks_for_its_own_function(function, monkeypatch):
    calls = []
    name = function.__name__
    monkeypatch.setattr(reference_norm, name, lambda *args: calls.append(name))
    x, weight = torch.ones(2, 4), torch.ones(4)
    arguments = (x, weight, 1e-5) if function is rms_norm else (x, x, weight, 1e-5)
    with choose_faces({f"norm.{name}": "reference"}):
        function(*arguments)
    function(*arguments)
    assert calls == [name]


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
    with pytest.raises(ValueError, match="VLLM_KERNELS_FACE must be one of reference, eager, cpu, triton, got 'gpu'"):
        face_of("norm", torch.device("cpu"))
