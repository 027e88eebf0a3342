"""The table of GPU kernels, as far as it goes without a GPU: every value in it is right, and wrong ones are told."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from vllm_kernels.benchmarks import __main__ as benchmarks
from vllm_kernels.benchmarks.case import Case, relative_error


def test_every_case_computes_what_float64_does(capsys):
    assert benchmarks.main(["--check"]) == 0
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


def test_times_are_refused_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert benchmarks.main([]) == 2
    assert "times need a GPU" in capsys.readouterr().err


def test_an_error_is_relative_and_never_hidden_by_nan():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
