"""``python -m vllm_kernels.aot``: what its subset leaves nothing of out, what it prints, and how it ends."""

import json
from typing import Any

import pytest

pytest.importorskip("triton")

from vllm_kernels import aot
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.device import FAMILIES
from vllm_kernels.triton.kernel import Configuration

GOOD = {
    "kernel": "a_kernel",
    "configuration": "*fp16 BLOCK=64 warps=4 stages=2",
    "target": 90,
    "registers": 40,
    "spilled": 0,
    "shared": 1024,
    "error": None,
}


def values(configurations: list[Configuration]) -> set[tuple[str, Any]]:
    """All that is said of parameters and of the launch."""
    return {
        pair
        for each in configurations
        for pair in (
            *each.types.items(),
            *each.constants.items(),
            ("num_warps", each.num_warps),
            ("num_stages", each.num_stages),
        )
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_subset_has_every_kernel_and_every_value_of_its_parameters_and_of_its_launch(family: str) -> None:
    for kernel in KERNELS:
        every = list(kernel.configurations(family))
        chosen = [every[place] for place in aot.covering(every)]
        assert values(chosen) == values(every), kernel.name
        assert every or (family, kernel.name) == ("sm_80", "fp8_product_kernel")  # which has no such numbers


@pytest.mark.parametrize("as_json", [True, False])
def test_a_kernel_that_does_not_compile_is_told_and_ends_with_1(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = GOOD | {"registers": 0, "shared": 0, "error": "CompilationError: no such word"}
    monkeypatch.setattr(aot, "_in_processes", lambda _: iter([GOOD, GOOD | {"spilled": 8}, bad]))
    assert aot.main(["--json"] if as_json else []) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    if as_json:
        assert list(map(json.loads, lines)) == [GOOD, GOOD | {"spilled": 8}, bad]
        assert json.loads(summary) == {"summary": {"compiled": 3, "failed": 1, "spilling": 1, "targets": [80, 90, 100]}}
    else:
        assert lines[1].endswith("stages=2: 40 registers, 8 bytes spilled, 1024 bytes shared")
        assert lines[2].endswith("stages=2: CompilationError: no such word")
        assert summary == "3 configurations, 1 failed, 1 with spills"


def test_all_good_ends_with_0_and_nothing_at_all_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "_in_processes", lambda _: iter([GOOD]))
    assert aot.main([]) == 0
    monkeypatch.setattr(aot, "_in_processes", lambda _: iter([]))
    assert aot.main([]) == 1
