"""What the compiler makes of kernels with a goal, and how its listing is read. Figures of a turn are of a warp."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from vllm_kernels.triton.candidates import Facts, rank
from vllm_kernels.triton.machine_code import loops_in
from vllm_kernels.triton.tuning import Work

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R2, desc[UR4][R6.64] ;               /* 0x00 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R27+0x8000], desc[UR8][R24.64], P3 ;  /* 0x00 */
        /*0030*/              @!P0 LDG.E.U8 R36, desc[UR8][R14.64] ;          /* 0x00 */
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;  /* 0x00 */
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;  /* 0x00 */
        /*0060*/                   NOP ;                                      /* 0x00 */
        /*0070*/             @!UP0 UIADD3 UR6, UR6, 0x1, URZ ;                /* 0x00 */
        /*0080*/                   FADD R1, R2, R3 ;                          /* 0x00 */
        /*0090*/                   FADD R1, R2, R3 ;                          /* 0x00 */
        /*00a0*/              @P1 BRA 0x10 ;                                  /* 0x00 */
        /*00b0*/                   FADD R9, R2, R3 ;                          /* 0x00 */
        /*00c0*/              @P2 BRA 0x0 ;                                   /* 0x00 */
        /*00d0*/                   BRA 0xd0;                                  /* 0x00 */
"""


def test_the_innermost_loop_is_read_from_a_listing():
    (loop,) = loops_in(LISTING)
    assert loop.instructions == 9  # from 0x10 to 0xa0 without the NOP
    assert loop.matrix == {"HGMMA.64x64x16.F32.BF16": 2}
    assert loop.loaded == {8: 1, 32: 1, 128: 1}
    assert (loop.of("FADD"), loop.of("UIADD3", "BRA"), loop.of("FMUL")) == (2, 2, 0)


def test_a_kernel_without_loops_counts_whole():
    (whole,) = loops_in(LISTING.replace("BRA", "EXIT"))
    assert whole.instructions == 13 and whole.of("FADD") == 3


def test_fewer_instructions_for_the_same_work_are_preferred_and_spills_are_not():
    work, rule = Work("memory", 16 * 128, 8192), {"BLOCK_N": 128, "num_warps": 8, "num_stages": 5}
    few = {"BLOCK_N": 128, "num_warps": 4, "num_stages": 5}
    of_rule = rank(rule, Facts(116, 0, 49152, 266), work, rule, "sm_90")
    of_few = [
        rank(few, Facts(147, spilled, 49664, instructions), work, rule, "sm_90")
        for spilled, instructions in ((0, 414), (0, 700), (8, 414))
    ]
    assert of_few[0] < of_rule < min(of_few[1:])


GOALS = {
    "prompts": ("attention_kernel", ["key_cache=*bf16 ", "GROUP=4 HEAD_DIM=128", "BLOCK_M=128"]),
    "decode": ("attention_kernel", ["key_cache=*bf16 ", "part_out=*fp32", "GROUP=4 HEAD_DIM=128"]),
    "decode of fp8": ("attention_kernel", ["query=*bf16 key_cache=*fp8e4nv", "part_out=*fp32", "GROUP=4 HEAD_DIM=128"]),
    "4-bit, few rows": ("quantized_few_rows_kernel", ["x=*bf16", "OUT=6144 IN=4096 GROUP=128", "without norm"]),
    "4-bit, norm": ("quantized_few_rows_kernel", ["norm=*bf16", "OUT=6144 IN=4096 GROUP=128"]),
    "4-bit, gate": ("quantized_few_rows_kernel", ["norm=*bf16", "OUT=14336 IN=4096 GROUP=128"]),
    "4-bit, 32 rows": ("product_kernel", ["*bf16", "OUT=6144 IN=4096 GROUP=128", "BITS=4 BLOCK_M=32"]),
    "4-bit, 64 rows": ("product_kernel", ["*bf16", "OUT=6144 IN=4096 GROUP=128", "BITS=4 BLOCK_M=64"]),
    "MXFP4, few rows": ("mxfp4_product_kernel", ["*bf16", "OUT=4096 IN=4096", "BLOCK_M=16"]),
    "one row": ("one_row_kernel", ["norm=*bf16", "OUT=6144 IN=4096"]),
    "few rows": ("few_rows_kernel", ["norm=*bf16", "OUT=14336 IN=4096"]),
    "fp8, few rows": ("few_rows_kernel", ["x=*fp8e4nv", "OUT=6144 IN=4096"]),
    "fp8": ("fp8_product_kernel", ["*bf16", "OUT=6144 IN=4096 GROUP=0 BLOCK_M=128"]),
    "experts, many rows": ("expert_product_kernel", ["*bf16 *i32 OUT", "BITS=0", "BLOCK_M=128"]),
    "experts, few rows": ("expert_product_kernel", ["*bf16 *i32 OUT", "BITS=0", "BLOCK_M=16"]),
    "norm": ("norm_kernel", ["*bf16 HIDDEN=4096"]),
    "gate": ("gated_kernel", ["*bf16 WIDTH=14336", "KIND=silu"]),
    "rounding of blocks": ("round_rows_kernel", ["*bf16 *fp32 *fp8e4nv WIDTH=128", "without given_scale"]),
}
"""Kernel, and what types and label of a configuration have in them: the first of sm_90 with that is compiled."""

COMPILED = """
import dataclasses
import json
import sys
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.compilation import compile_for

kernels = {kernel.name: kernel for kernel in KERNELS}
found = {}
for name, (kernel, words) in json.loads(sys.argv[1]).items():
    every = kernels[kernel].configurations("sm_90")
    told = lambda each: " ".join([*(f"{argument}={kind}" for argument, kind in each.types.items()), each.label])
    first = next(each for each in every if all(word in told(each) for word in words))
    compiled = compile_for(kernels[kernel], first, 90, with_loops=True)
    assert compiled.error is None, compiled.error
    loop = compiled.loops[0]
    found[name] = [loop.instructions * first.num_warps / 4, loop.counts, loop.matrix, loop.loaded]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def turns():
    """Name of a goal -> clocks in which a multiprocessor starts a turn, its instructions, products, loads by bits."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED, json.dumps(GOALS)]
    done = subprocess.run(command, capture_output=True, text=True, env=without)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name, most, matrix",
    [
        # A turn has 128 rows by 64 keys of 128 columns: 1,024 clocks of Hopper's tensor cores.
        ("prompts", 1100, "HGMMA"),
        # 64 keys and values: 32 KB, 2,270 clocks of a multiprocessor's share of an H100's memory; 1,135 in 8 bits.
        ("decode", 700, "HMMA"),
        ("decode of fp8", 900, "HMMA"),
        # 8 KB, 567 clocks of memory, with a gate twice that; of MXFP4 4 KB, 283.
        ("4-bit, few rows", 520, "HMMA"),
        ("4-bit, norm", 565, "HMMA"),
        ("4-bit, gate", 960, "HMMA"),
        ("4-bit, 32 rows", 530, "HGMMA"),
        ("MXFP4, few rows", 370, "HMMA"),
        # 64 rows by 128 by 128 columns: 512 clocks of tensor cores.
        ("4-bit, 64 rows", 560, "HGMMA"),
        # 32 KB, 2,260 clocks of memory.
        ("few rows", 420, "HMMA"),
        ("fp8, few rows", 420, "HMMA"),
        # 128 by 128 by 128: 512 clocks of tensor cores; of bf16, and by 64, as many.
        ("fp8", 400, "QGMMA"),
        ("experts, many rows", 300, "HGMMA"),
        # 16 KB, 1,133 clocks of memory.
        ("experts, few rows", 200, "HMMA"),
    ],
)
def test_a_turn_starts_in_fewer_clocks_than_its_bound_and_uses_tensor_cores(turns, name, most, matrix):
    clocks, _, products, _ = turns[name]
    assert clocks <= most
    assert products and {product.split(".")[0] for product in products} == {matrix}


@pytest.mark.parametrize("name", GOALS)
def test_what_is_large_is_loaded_by_16_bytes(turns, name):
    """Tables, scales and zeros are smaller: one or a few loads of a thread for many of the others."""
    _, counts, _, loads = turns[name]
    # What a turn has of a single row, or of a norm's weights, is less than that for each thread.
    less = {"one row": loads.get("64", 0), "4-bit, norm": 1, "4-bit, gate": 1}
    assert loads.get("128", 0) >= 1 and loads.get("64", 0) <= less.get(name, 0)
    if name in ("norm", "gate", "rounding of blocks"):
        assert set(loads) == {"128"}
    # Entries of 8 bits come from shared memory by more than one, and no type is converted by the slow unit.
    assert not any(name.startswith(("LDS.U8", "LDS.S8", "F2F.BF16.F16")) for name in counts)


def test_keys_that_all_rows_see_are_not_compared(turns):
    _, counts, _, _ = turns["prompts"]
    assert sum(count for name, count in counts.items() if name.startswith("FSEL")) <= 4
