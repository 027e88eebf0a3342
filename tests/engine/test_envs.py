"""Environment variables are read when asked for, and a text that cannot be read is told by its name."""

import pytest

from vllm_engine import envs
from vllm_engine.errors import ConfigError


def test_an_unset_variable_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in envs.VARIABLES.items():
        monkeypatch.delenv(name, raising=False)
        assert envs.get(name) == variable.default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("VLLM_LOGGING_LEVEL", "debug", "DEBUG"),
        ("VLLM_CPU_KVCACHE_SPACE", "1.5", 1.5),
        ("VLLM_CHECK_INVARIANTS", "1", True),
        ("VLLM_CHECK_INVARIANTS", "off", False),
    ],
)
def test_a_set_variable_is_read_at_the_moment_of_asking(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert envs.get(name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VLLM_LOGGING_LEVEL", "loud"),
        ("VLLM_CPU_KVCACHE_SPACE", "much"),
        ("VLLM_CPU_KVCACHE_SPACE", "-1"),
        ("VLLM_CPU_KVCACHE_SPACE", "nan"),
        ("VLLM_CHECK_INVARIANTS", "maybe"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_with_the_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError, match=name) as caught:
        envs.get(name)
    assert caught.value.field == name
