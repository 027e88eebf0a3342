"""The table of GPU kernels, as far as it goes without a GPU: every value in it is right, and wrong ones are told."""

import pytest
import torch

pytest.importorskip("triton")

from vllm_kernels.benchmarks import __main__ as benchmarks
from vllm_kernels.benchmarks.case import relative_error


def test_every_case_computes_what_float64_does(capsys):
    assert benchmarks.main(["--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 15 and all("error" in line for line in lines[1:])


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
