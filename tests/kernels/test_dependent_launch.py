"""Kernels that begin while the one before them runs: which do, and what they may touch before they wait."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

pytest.importorskip("triton")

from vllm_kernels.triton import dependent_launch
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.compilation import fault_of_waiting
from vllm_kernels.triton.kernel import Kernel
from vllm_kernels.triton.machine_code import instructions_in

KERNEL = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry some_kernel(.param .u64 .ptr .global .align 16 some_kernel_param_0) {
    ld.param.b64 %rd1, [some_kernel_param_0];
    griddepcontrol.launch_dependents; // dummy %r1
    {before}
    griddepcontrol.wait; // dummy %r2
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    cp.async.cg.shared.global [ %r5 + 0 ], [ %rd2 + 0 ], 0x10, %r6;
    ret;
}
"""


@pytest.mark.parametrize(
    ("before", "fault"),
    [
        ("", None),
        ("prefetch.global.L2 [%rd4]; // %r9", None),
        ("st.shared.b32 [%r1], %r2;", None),
        ("@%p2 ld.global.b32 { %r1 }, [ %rd1 + 0 ];", "to ld.global.b32"),
        ("@!%p2 st.global.b32 [ %rd1 + 0 ], { %r1 };", "to st.global.b32"),
        ("atom.global.gpu.add.u32 %r1, [%rd1], %r2;", "to atom.global.gpu.add.u32"),
        ("cp.async.bulk.tensor.2d.shared::cta [%r1], [%rd1, {%r2, %r3}], [%r4];", "to cp.async.bulk.tensor.2d"),
        ("@%p3 bra $L__BB0_2;", "may end without having waited for the kernels before it: bra"),
    ],
)
def test_what_is_done_before_the_kernel_waits_is_told(before, fault):
    found = fault_of_waiting(KERNEL.replace("{before}", before))
    assert found is None if fault is None else fault in found


def test_a_kernel_that_does_not_wait_is_told():
    assert fault_of_waiting(KERNEL.replace("griddepcontrol.wait", "griddepcontrol.other")) is not None


def test_loads_of_what_was_not_to_change_are_told():
    """The cache that they go through may hold what stood there when the kernel began."""
    assert "loads by ld.global.nc" in fault_of_waiting(KERNEL.replace("ld.global.v4", "ld.global.nc.v4"))


def test_every_kernel_knows_whether_it_was_started_early():
    assert [kernel.name for kernel in KERNELS if dependent_launch.PARAMETER not in kernel.function.arg_names] == []


@pytest.fixture
def asked():
    """``are_used`` without what it remembers."""
    dependent_launch.are_used.cache_clear()
    yield dependent_launch.are_used
    dependent_launch.are_used.cache_clear()


@pytest.mark.parametrize(
    ("capability", "variable", "used"),
    [((8, 0), None, False), ((8, 9), "1", False), ((9, 0), None, True), ((9, 0), "off", False), ((12, 0), "1", True)],
)
def test_gpus_since_hopper_start_kernels_early(capability, variable, used, asked, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if variable is None:
        monkeypatch.delenv(dependent_launch.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(dependent_launch.VARIABLE, variable)
    device = torch.device("cuda", 7)  # no other test asks for the family of this one
    dependent_launch.family_of.cache_clear()
    assert asked(device) == used
    dependent_launch.family_of.cache_clear()
    assert not asked(torch.device("cpu"))


@pytest.mark.parametrize("early", [False, True])
def test_a_launch_says_so_to_the_kernel_and_to_the_driver(early, monkeypatch):
    given = []

    class Function:
        def __getitem__(self, grid):
            return lambda *arguments, **options: given.append((grid, options))

    monkeypatch.setattr("vllm_kernels.triton.kernel.are_used", lambda device: early)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with FakeTensorMode():
        Kernel(Function(), lambda family: []).launch((3,), torch.empty(4, device="cuda:0"), num_warps=8, SIZE=16)
    ((grid, options),) = given
    assert grid == (3,)
    assert options == {"SIZE": 16, "num_warps": 8, "num_stages": 2, "PDL": early} | (
        {"launch_pdl": True} if early else {}
    )


COMPILED = """
import json
import triton
from triton.backends.compiler import GPUTarget
from vllm_kernels.triton import few_rows, norm, one_row, quantized_few_rows, rotary
from vllm_kernels.triton.attention import attend
from vllm_kernels.triton.compilation import source_for
from vllm_kernels.triton.machine_code import listing_of

kernels = [norm.norm, rotary.rope, attend, one_row.one_row, few_rows.few_rows, quantized_few_rows.quantized_few_rows]
found = {}
for kernel in kernels:
    for target in (80, 90):
        first = next(iter(kernel.configurations(f"sm_{target}")))
        options = {"num_warps": first.num_warps, "num_stages": first.num_stages}
        source, gpu = source_for(kernel, first, target), GPUTarget("cuda", target, 32)
        binary = triton.compile(source, target=gpu, options=options)
        found[f"{kernel.name} {target}"] = listing_of(binary.asm["cubin"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def listings():
    """Machine code of the kernels of a decode step: name and target -> names of instructions, in their order."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=without)
    assert done.returncode == 0, done.stderr
    return {name: instructions_in(listing) for name, listing in json.loads(done.stdout).items()}


def test_the_machine_code_touches_nothing_before_it_waits(listings):
    """The assembler has kept the order: PREEXIT lets the next kernel start, ACQBULK waits, CCTL asks for weights."""
    for name, instructions in listings.items():
        kinds = [instruction.split(".")[0] for instruction in instructions]
        if name.endswith(" 80"):
            assert not {"PREEXIT", "ACQBULK"} & set(kinds), name
            continue
        before = kinds[: kinds.index("ACQBULK")]
        assert "PREEXIT" in before, name
        assert not {"LDG", "LDGSTS", "STG", "ATOMG", "RED", "UBLKCP", "BRA", "EXIT"} & set(before), name
        assert ("CCTL" in before) == ("few_rows" in name or "one_row" in name), name
        assert {"LDG", "LDGSTS"} & set(kinds) and "STG" in kinds, name
        assert not any(instruction.startswith("LDG") and "CONSTANT" in instruction for instruction in instructions), (
            name
        )
