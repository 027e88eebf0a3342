"""A few of the random cases of ``make fuzz-engine``, the same each time."""

from pathlib import Path

import pytest

from tests.engine.fuzzing.case import run_case

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_get_what_transformers_and_plain_arithmetic_say(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CHECK_INVARIANTS", "1")
    assert run_case(seed, tmp_path)["completions"] > 0
