"""Fixtures of the settings tests."""

import pytest

from tests.cli.conftest import logging_as_it_was
from vllm_engine.config.device import VARIABLE

__all__ = ["logging_as_it_was"]


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a setting does is asked of a CPU, also on a machine with a GPU, unless a test names the device."""
    monkeypatch.setenv(VARIABLE, "cpu")
