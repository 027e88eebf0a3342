"""``pytest -p tests.simulated_gpu.plugin``: tests find a GPU, which is simulated."""

import os

import pytest

from tests.simulated_gpu import facts
from tests.simulated_gpu.activate import INTERPRETS_ALL, activate

LARGE = 8 * 2**30
"""Bytes of a GPU that tests of its memory fill; their engines fill main memory as much."""

NOT_SIMULATED = {
    "test_bf16_agreement.py::test_errors_are_those_of_rounding_and_choices_differ_at_ties_only": (
        "torch's bf16 product with a bias rounds twice on a CPU, where it is not the operator of linear layers"
    ),
    "test_profile.py": "torch's profiler knows nothing of it, and looks for it in each operator",
    "test_ssm.py::test_a_layer_is_the_mixer_of_transformers[triton": "torch has its convolution for no CPU",
    "test_the_second_start_compiles_nothing": "kernels are interpreted, not compiled",
    "test_free_memory_can_be_asked_for_without_a_context": "there is no management library",
}
"""Words of a test's name, and why it says nothing here."""
if not INTERPRETS_ALL:
    NOT_SIMULATED["test_a_compiled_model_says_the_same"] = "the compiler looks into what stands in for kernels"
    NOT_SIMULATED["test_a_layer_of_few_tokens_is_six_kernels"] = "torch's operators stand in for kernels"
if facts.TOTAL < LARGE:
    NOT_SIMULATED["test_gpu_memory.py::test_a"] = f"SIMULATED_GPU_BYTES is less than {LARGE}"

os.environ["TRITON_INTERPRET"] = "1"
activate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the simulation cannot tell."""
    for item in items:
        for words, reason in NOT_SIMULATED.items():
            if words in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
