from collections.abc import Callable
from contextlib import ExitStack
from ctypes import CDLL
from functools import cache
from importlib.util import find_spec

import pytest
import torch

from tests.conftest import HAS_GPU
from tests.kernels.native_build import compile_file, kernels_from
from vllm_kernels.backend import use_face
from vllm_kernels.cpu import native
from vllm_kernels.triton.device import interpreted

if find_spec("triton") is not None:
    from tests.kernels.interpreter import call_without_patching

    call_without_patching()


@pytest.fixture(autouse=True)
def poisoned():
    """What is made without numbers in it is full of NaN, or of the greatest integer: an element nobody writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # a GPU's products warn of themselves
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def gpu_of_triton(request):
    """Where there is a GPU, tests of Triton's kernels make their tensors on it."""
    is_tritons = request.node.get_closest_marker("triton") or "triton" in request.node.nodeid
    if not HAS_GPU or not is_tritons:
        yield
        return
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


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


@pytest.fixture(params=["reference", "eager", *native.LEVELS, "triton"])
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


@pytest.fixture
def refusing_face(face):
    """Every implementation that can look at indices before it uses them: a GPU would have to be waited for."""
    if face == "triton":
        pytest.skip("a Triton kernel leaves out what lies outside: test_triton.py")
    return face


def pytest_collection_modifyitems(items):
    """Leave out what Triton's interpreter computes wrongly: products in bfloat16, rounding to it, NaN in e4m3."""
    if not interpreted():
        return
    for item in items:
        words = item.callspec.id if hasattr(item, "callspec") else ""
        nan = item.name.startswith("test_8_bit_entries_keep_nan") and "e4m3" in words
        if "triton" in words and ("bfloat16" in words or nan):
            item.add_marker(pytest.mark.skip(reason="Triton's interpreter converts it wrongly"))


@pytest.fixture(scope="session")
def emulation(tmp_path_factory) -> Callable[[str], CDLL]:
    """Compiles a kernel file, by its name without ``.cpp``, for AMX with tiles in plain C++; each file once."""
    if "avx512_bf16" not in native.machine_levels():
        pytest.skip("the level of AMX also needs AVX-512 BF16")
    return cache(lambda name: compile_file(name, "amx", tmp_path_factory.mktemp("amx")))


@pytest.fixture(params=[*native.LEVELS, "amx_emulated"])
def kernels(request):
    """Each level of the machine, and AMX emulated for the kernel files that the module names in ``EMULATED``."""
    if request.param == "amx_emulated":
        compiled = request.getfixturevalue("emulation")
        with ExitStack() as stack:
            for name in request.module.EMULATED:
                stack.enter_context(kernels_from(compiled(name)))
            yield request.param
        return
    if request.param not in native.machine_levels():
        pytest.skip(f"this machine has no {request.param}")
    with native.use_level(request.param):
        yield request.param
