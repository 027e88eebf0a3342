"""The table of GPU kernels, as far as it goes without a GPU: every value in it is right, and wrong ones are told."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from vllm_kernels.benchmarks import __main__ as benchmarks
from vllm_kernels.benchmarks import products
from vllm_kernels.benchmarks.case import Case, Sizes, relative_error
from vllm_kernels.triton.catalogue import KERNELS
from vllm_kernels.triton.device import interpreted
from vllm_kernels.triton.kernel import recorded


@pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU")
def test_every_kernel_computes_what_float64_does(capsys):
    with recorded() as launches:
        assert benchmarks.main(["--check"]) == 0
    assert {kernel.name for kernel, _ in launches} == {kernel.name for kernel in KERNELS}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 40 and all("error" in line for line in lines[1:])
    text = "\n".join(lines)
    for word in ("attention", "MLA", "experts", "LoRA", "chunk_scan", "fp8 by fp8", "sample", "top_logprobs"):
        assert word in text
    assert "goal 1.3x cuBLAS" in text and "goal 80% of the ceiling" in text


def test_what_there_is_no_time_for_is_told(capsys):
    assert benchmarks.main(["--check", "--only", "rms_norm", "--seconds", "0"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "left out after 0 s: rms_norm, rms_norm, fused_add_rms_norm" in shown.err


def test_times_are_held_to_their_goals(monkeypatch):
    """With a clock that is made up: 1 ms for ours, 2 ms for torch's."""
    seconds = iter([1e-3, 2e-3] * 2)
    monkeypatch.setattr(benchmarks, "median_seconds", lambda _: next(seconds))
    ones = torch.ones(1, dtype=torch.float64)
    case = Case("name", "shape", lambda: ones, lambda x: x, lambda: ones, 0.0, 10**6, peer=lambda: ones, peer_name="it")
    ceilings = benchmarks.Ceilings(memory=2e9, matrix=1e12)
    line = benchmarks._line(dataclasses.replace(case, goal=0.5, peer_goal=2.0), ceilings)
    assert (line.part, line.ratio, line.goal, line.missed) == (0.5, 2.0, "50% of the ceiling, 2.0x it", False)
    assert "goal 50% of the ceiling, 2.0x it (reached)" in benchmarks._text(line)
    assert "(missed)" in benchmarks._text(benchmarks._line(dataclasses.replace(case, peer_goal=2.5), ceilings))


def test_a_wrong_value_is_told_and_ends_with_1(monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "relative_error", lambda *_: 1.0)
    assert benchmarks.main(["--check", "--only", "rms_norm"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.skipif(not interpreted(), reason="tensors are on the CPU")
def test_a_case_that_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    ones = torch.ones(1, dtype=torch.float64)

    def fail():
        raise RuntimeError("no room")

    good = Case("good", "shape", lambda: ones, lambda x: x, lambda: ones, 0.0, 10)
    group = SimpleNamespace(cases=lambda *_: [dataclasses.replace(good, name="bad", run=fail), good])
    monkeypatch.setattr(benchmarks, "_GROUPS", (group,))
    assert benchmarks.main(["--check"]) == 1
    _, bad, other = capsys.readouterr().out.splitlines()
    assert "FAILED: RuntimeError: no room" in bad and "good" in other and "error 0.0" in other
    assert benchmarks.main(["--check", "--json"]) == 1
    head, bad, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert head == {"device": "Triton's interpreter", "ceilings": None}
    assert (bad["error"], bad["right"], bad["fault"]) == (None, False, "RuntimeError: no room")
    assert (other["error"], other["right"], other["fault"]) == (0.0, True, "")


def test_a_gpu_without_fp8_is_not_asked_for_torch_s_product_of_it(monkeypatch):
    monkeypatch.setattr(products, "has_fp8", lambda _: False)
    names = [case.peer_name for case in products.cases(torch.device("cpu"), torch.float16, Sizes(tiny=True))]
    assert "_scaled_mm" not in names and "cuBLAS" in names


def test_times_are_refused_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert benchmarks.main([]) == 2
    assert "times need a GPU" in capsys.readouterr().err


def test_an_error_is_relative_and_never_hidden_by_nan():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
