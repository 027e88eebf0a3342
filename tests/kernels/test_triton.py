"""The Triton kernels beyond what the other files ask of every face: splits, what lies outside, what is compiled."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.paged import random_sequence, step_of
from tests.kernels.test_attention import attend, features, oracle
from vllm_kernels.backend import use_face
from vllm_kernels.ops.activation import silu_and_mul
from vllm_kernels.ops.cache import allocate_kv_cache, write_kv
from vllm_kernels.ops.embedding import embedding
from vllm_kernels.ops.linear import fill, linear
from vllm_kernels.ops.norm import fused_add_rms_norm, rms_norm
from vllm_kernels.ops.quantization import new_weight
from vllm_kernels.ops.rotary import rope_and_cache

pytest.importorskip("triton")

from vllm_kernels.triton import attention_plan
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.kernel import Kernel, recorded

HELD_ELSEWHERE = {
    "scan_kernel",
    "greedy_kernel",
    "begin_kernel",
    "sections_kernel",
    "gather_candidates_kernel",
    "cut_kernel",
    "weigh_kernel",
    "pick_kernel",
    "apply_kernel",
    "tally_kernel",
    "logprobs_kernel",
    "penalties_kernel",
    "entries_kernel",
    "fill_kernel",
    "lora_shrink_kernel",
    "lora_expand_kernel",
    "conv_kernel",
    "conv_update_kernel",
    "state_update_kernel",
    "chunk_state_kernel",
    "pass_states_kernel",
    "chunk_scan_kernel",
    "latent_attention_kernel",
    "write_latent_kernel",
    "copy_blocks_kernel",
    "one_row_kernel",
    "few_rows_kernel",
    "fp8_product_kernel",
    "mxfp4_product_kernel",
    "round_rows_kernel",
    "norm_round_kernel",
    "gather_kernel",
    "route_kernel",
    "expert_count_kernel",
    "expert_start_kernel",
    "expert_place_kernel",
    "expert_align_kernel",
    "expert_product_kernel",
    "combine_kernel",
}
"""Kernels with a test of their own that what is launched is what is compiled."""


@pytest.fixture(autouse=True)
def triton_serves():
    with use_face("triton"):
        yield


@pytest.mark.parametrize("kind", features(4))
def test_keys_cut_into_parts_equal_the_float64_reference(kind, monkeypatch):
    monkeypatch.setattr(attention_plan, "SPLIT_TOKENS", 32)
    torch.manual_seed(0)
    options = features(4)[kind]
    step = step_of([random_sequence(*lengths) for lengths in [(1, 300), (1, 1), (2, 33), (1, 65), (20, 40)]], 16)
    with recorded() as launches:
        result = attend(step, **options)
    merges = [configuration for kernel, configuration in launches if kernel.name == "merge_kernel"]
    assert {configuration.constants["SPLITS"] for configuration in merges} == {8}
    (plan,) = step.metadata.plans.values()
    assert plan.part_tokens == 5  # none for the prompt: parts of long prompts would be gigabytes
    assert (result.double() - oracle(step, **options)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", features(4))
def test_keys_of_a_few_prompts_cut_into_parts_equal_the_float64_reference(kind, monkeypatch):
    monkeypatch.setattr(attention_plan, "SPLIT_TOKENS", 16)
    torch.manual_seed(0)
    options = features(4)[kind]
    step = step_of([random_sequence(*lengths) for lengths in [(20, 150), (1, 70), (33, 33), (40, 300), (2, 9)]], 16)
    with recorded() as launches:
        result = attend(step, **options)
    (plan,) = step.metadata.plans.values()
    assert [tiles.splits > 1 for tiles in plan.launches] == [True, True] and plan.part_starts is None
    assert sum(kernel.name == "merge_kernel" for kernel, _ in launches) == 2
    assert (result.double() - oracle(step, **options)).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 70, 200])
@pytest.mark.parametrize("lengths", [(1, 259), (40, 300), (3, 256), (100, 100), (2, 65)], ids=str)
def test_keys_that_all_rows_of_a_tile_see_and_those_at_its_borders_count_once(lengths, window):
    torch.manual_seed(0)
    first_kept = None if window is None else [max(lengths[1] - lengths[0] - window + 1, 0)]
    step = step_of([random_sequence(*lengths, dtype=torch.float16)], 16, first_kept=first_kept)
    expected = oracle(step, sliding_window=window)
    assert (attend(step, sliding_window=window).double() - expected).abs().max() < 2e-3


@pytest.mark.parametrize("scale", [0.0, -0.3, 7.0])
@pytest.mark.parametrize("kind", ["plain", "all"])
def test_any_scale_of_scores_equals_the_reference(kind, scale):
    torch.manual_seed(0)
    options = {**features(4)[kind], "scale": scale}
    step = step_of([random_sequence(*lengths) for lengths in [(1, 100), (30, 50)]], 16)
    assert (attend(step, **options).double() - oracle(step, **options)).abs().max() < 2e-5


@pytest.mark.parametrize("group", [1, 3, 7, 16])
def test_any_number_of_query_heads_to_a_kv_head_equals_the_reference(group):
    torch.manual_seed(0)
    heads = {"num_heads": 2 * group, "num_kv_heads": 2, "head_dim": 24, "dtype": torch.float16}
    step = step_of([random_sequence(*lengths, **heads) for lengths in [(1, 9), (30, 50), (1, 1)]], 16)
    assert (attend(step).double() - oracle(step)).abs().max() < 3e-3


@pytest.mark.parametrize(
    "head_dim, format",
    [(64, "fp8_e5m2"), (80, "fp8_e4m3"), (96, "int8_per_token_head"), (192, "float16"), (256, "fp8_per_token_head")],
)
def test_any_width_of_heads_that_share_one_key_equals_the_reference(head_dim, format):
    torch.manual_seed(0)
    heads = {"num_heads": 8, "num_kv_heads": 1, "head_dim": head_dim, "dtype": torch.float16}
    step = step_of([random_sequence(*lengths, **heads) for lengths in [(1, 40), (9, 20)]], 16, format=format)
    assert (attend(step).double() - oracle(step)).abs().max() < 3e-3


def test_blocks_outside_of_the_cache_are_not_read():
    torch.manual_seed(0)
    step = step_of([random_sequence(1, 40)], 16)
    step.metadata.block_table[0, 1] = 10_000
    result = attend(step)
    assert result.isfinite().all()


def test_tokens_whose_place_lies_outside_are_left_out():
    cache = allocate_kv_cache(2, 2, 1, 16, "float32")
    write_kv(torch.ones(4, 1, 16), torch.ones(4, 1, 16), cache, torch.tensor([0, 4, 2**40, -1]))
    assert cache.key.sum() == cache.value.sum() == 16
    qkv, table = torch.ones(3, 3 * 16), torch.cat([torch.zeros(4, 8), torch.ones(4, 8)], dim=1)
    query = rope_and_cache(qkv, 1, torch.tensor([4, -1, 0]), table, cache, torch.tensor([9, 1, -5]))
    assert torch.equal(query[:2], torch.ones(2, 1, 16)) and not torch.equal(query[2], torch.ones(1, 16))
    assert cache.key.sum() == 32


def test_ids_outside_of_a_table_give_zeros():
    rows = embedding(torch.tensor([-1, 1, 3, 2**40]), torch.ones(3, 5))
    assert rows.sum(1).tolist() == [0, 5, 0, 0]


def test_what_is_launched_is_what_is_compiled_ahead():
    """The shapes of Qwen 3 0.6B, few tokens of them: each launch is a configuration of its kernel, to the letter."""
    torch.manual_seed(0)
    dtype = torch.float16
    with recorded() as launches:
        hidden = torch.randn(3, 1024, dtype=dtype)
        weight = torch.randn(1024, dtype=dtype)
        embedding(torch.tensor([1, 2, 3]), torch.randn(9, 1024, dtype=dtype))
        fused_add_rms_norm(rms_norm(hidden, weight, 1e-6), hidden, weight, 1e-6)
        silu_and_mul(torch.randn(3, 6144, dtype=dtype))
        heads = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "dtype": dtype}
        step = step_of([random_sequence(1, 20, **heads), random_sequence(9, 20, **heads)], 16)
        attend(step)
        table, norm = torch.randn(64, 128), torch.randn(128, dtype=dtype)
        rope_and_cache(
            torch.randn(3, 4096, dtype=dtype),
            16,
            torch.arange(3),
            table,
            step.cache,
            torch.arange(3) + 16,
            q_norm=norm,
            k_norm=norm,
            norm_eps=1e-6,
        )
        for rows, bits, group_size, activation_bits in ((3, 8, None, 8), (3, 4, 128, None), (20, 4, 128, None)):
            scheme = {"bits": bits, "group_size": group_size, "activation_bits": activation_bits}
            weight = new_weight(1024, 2048, dtype, **scheme)
            fill(weight, torch.randn(1024, 2048))
            linear(torch.randn(rows, 2048, dtype=dtype), weight, residual=torch.randn(rows, 1024, dtype=dtype))
        write_kv(torch.randn(3, 8, 128, dtype=dtype), torch.randn(3, 8, 128, dtype=dtype), step.cache, torch.arange(3))
    seen = set()
    for kernel, configuration in launches:
        assert configuration in list(kernel.configurations("sm_90")), (kernel.name, configuration.label)
        seen.add(kernel.name)
    elsewhere = {"plain_kernel", "merge_kernel", *HELD_ELSEWHERE}
    assert seen == {kernel.name for kernel in KERNELS} - elsewhere


@pytest.mark.parametrize(("of_tensors", "switches"), [("cuda:1", ["cuda:1"]), ("cuda:0", []), ("cpu", [])])
def test_a_kernel_runs_on_the_device_of_its_tensors(of_tensors, switches, monkeypatch):
    current, ran = [], []

    @contextmanager
    def use(device):
        current.append(str(device))
        yield
        ran.append("switched back")

    class Function:
        def __getitem__(self, grid):
            return lambda *arguments, **options: ran.append(grid)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", use)
    with FakeTensorMode():
        x = torch.empty(4, device=of_tensors)
    Kernel(Function(), lambda family: []).launch((3,), None, x, 4)
    assert current == switches and ran == [(3,), *["switched back"] * len(switches)]


def test_a_kernel_is_compiled_without_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    command = [sys.executable, "-m", "vllm_kernels.aot", "--targets", "80,90", "--kernels", "plain_kernel", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, summary = map(json.loads, done.stdout.splitlines())
    assert summary == {"summary": {"compiled": 18, "failed": 0, "spilling": 0, "targets": [80, 90]}}
    assert {line["target"] for line in lines} == {80, 90}
    assert all(line["registers"] > 8 and line["error"] is None for line in lines)


SPECIALISED = {
    "norm_kernel": [],
    "gated_kernel": [],
    "plain_kernel": ["size"],
    "embedding_kernel": [],
    "write_kernel": ["key_stride", "value_stride"],
    "copy_blocks_kernel": [],
    "gather_kernel": [],
    "rope_kernel": [],
    "attention_kernel": ["query_stride"],
    "merge_kernel": [],
    "latent_attention_kernel": [
        "latent_token_stride", "latent_head_stride", "rope_token_stride", "rope_head_stride",
    ],
    "write_latent_kernel": ["latent_stride", "rope_stride"],
    "scan_kernel": ["size", "num_parts"],
    "greedy_kernel": ["num_parts"],
    "begin_kernel": ["num_parts"],
    "sections_kernel": ["size", "num_parts"],
    "gather_candidates_kernel": ["size", "num_parts"],
    "cut_kernel": ["size"],
    "weigh_kernel": ["size", "num_parts"],
    "pick_kernel": ["size", "num_parts"],
    "apply_kernel": ["size"],
    "tally_kernel": ["size", "num_parts"],
    "logprobs_kernel": ["size", "num_parts"],
    "penalties_kernel": ["size", "row_stride", "column_stride"],
    "entries_kernel": ["size", "row_stride", "column_stride"],
    "fill_kernel": ["size", "row_stride", "column_stride"],
    "round_kernel": [],
    "round_rows_kernel": [],
    "norm_round_kernel": [],
    "product_kernel": [],
    "rounded_product_kernel": [],
    "fp8_product_kernel": [],
    "mxfp4_product_kernel": [],
    "one_row_kernel": [],
    "few_rows_kernel": [],
    "quantized_few_rows_kernel": [],
    "add_parts_kernel": ["out_features"],
    "route_kernel": ["stride"],
    "expert_count_kernel": [],
    "expert_start_kernel": [],
    "expert_place_kernel": [],
    "expert_align_kernel": [],
    "expert_product_kernel": [],
    "combine_kernel": [],
    "lora_shrink_kernel": ["x_stride"],
    "lora_expand_kernel": ["out_stride", "out_features"],
    "conv_kernel": ["x_stride", "channels"],
    "conv_update_kernel": ["x_stride", "channels"],
    "state_update_kernel": ["x_stride", "dt_stride", "b_stride", "c_stride", "z_stride"],
    "chunk_state_kernel": ["x_stride", "dt_stride", "b_stride"],
    "pass_states_kernel": [],
    "chunk_scan_kernel": ["x_stride", "b_stride", "c_stride", "z_stride"],
}  # fmt: skip
"""Numbers for which a kernel is compiled anew when they become 1, or a multiple of 16: a model's own, and strides."""

COMPILED = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature
from vllm_kernels.triton.attention import attend
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.compilation import source_for

target = GPUTarget("cuda", 90, 32)
backend = make_backend(target)


def specialised(kernel):
    function, configuration = kernel.function, next(iter(kernel.configurations("sm_90")))
    bind = create_function_from_signature(function.signature, function.params, backend)
    numbers = [name for name, kind in configuration.types.items() if kind == "i32"]
    given = {name: MockTensor("fp32") for name in configuration.types} | dict.fromkeys(numbers, 17)
    given |= {name: 0.5 for name, kind in configuration.types.items() if kind == "fp32"}
    constants = {**configuration.constants, "PDL": True}
    keys = lambda name: [bind(**{**given, name: value}, **constants)[1] for value in (1, 16, 17)]
    return [name for name in numbers if any(key != keys(name)[0] for key in keys(name))]


e5m2 = next(each for each in attend.configurations("sm_90") if each.types["key_cache"] == "*fp8e5")
lines = triton.compile(source_for(attend, e5m2, 90), target=target).asm["ttgir"].splitlines()
conversions = [line.split("->")[1] for line in lines if "fp_to_fp" in line and "f8E5M2" in line]
print(json.dumps([{kernel.name: specialised(kernel) for kernel in KERNELS}, e5m2.types["query"], conversions]))
"""


@pytest.fixture(scope="module")
def compiled():
    """What Triton's compiler says: kernel -> the numbers that it is specialised by; and of attention to a cache of e5m2
    the type of its queries, and what entries are converted to."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=without)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_number_that_changes_between_steps_or_starts_makes_a_kernel_compile_anew(compiled):
    assert compiled[0] == SPECIALISED


def test_nan_in_e5m2_is_not_read_as_a_number(compiled):
    """Into bf16 Triton shifts e5m2 and multiplies, which makes a number of NaN; into fp16 it does not."""
    _, query, conversions = compiled
    assert query == "*bf16" and len(conversions) == 4  # of keys and of values, in two loops
    assert all("xf16, " in kind for kind in conversions)


def test_what_cannot_be_compiled_is_told(capsys):
    from vllm_kernels.aot import main

    with pytest.raises(SystemExit) as left:
        main(["--targets", "75"])
    assert left.value.code == 2 and "80,90,100" in capsys.readouterr().err
    assert main(["--kernels", "nothing"]) == 2
    assert "--kernels must be of" in capsys.readouterr().err


def test_a_covering_subset_has_every_value_of_every_parameter():
    from vllm_kernels.aot import covering

    for kernel in KERNELS:
        every = list(kernel.configurations("sm_90"))
        chosen = [every[place] for place in covering(every)]
        for name in every[0].constants:
            assert {c.constants[name] for c in chosen} == {c.constants[name] for c in every}
        for name in every[0].types:
            assert {c.types[name] for c in chosen} == {c.types[name] for c in every}
