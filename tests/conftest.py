"""What holds for every test, and for the servers that tests start: set before anything loads torch."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from vllm_engine.config.device import VARIABLE, find_gpus

# Examples have no deadline, as the machine may do other things. With CI in the environment hypothesis makes the same
# examples each time; without it every run looks a little further.
settings.register_profile("tests", settings.default, deadline=None)
settings.load_profile("tests")

HAS_GPU = bool(find_gpus().found)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Waiting threads sleep. When several tests or servers share few cores, threads that spin while they wait keep the
# others from the work that all wait for: a token of the demo model then takes 170 ms instead of 6.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton reads this when it is imported itself, which torch and others do at moments of their own.
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are skipped without one."""
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests about the CPU, their fixtures included, run on it."""
    before = os.environ.get(VARIABLE)
    if item.get_closest_marker("cpu_only"):
        os.environ[VARIABLE] = "cpu"
    try:
        return (yield)
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
