"""Fixtures of the command-line tests."""

from collections.abc import Iterator

import pytest

from tests.cli.mock_openai import MockOpenAI, running_mock


@pytest.fixture
def server() -> Iterator[MockOpenAI]:
    """A mock OpenAI server on a free port."""
    with running_mock() as mock:
        yield mock


@pytest.fixture(autouse=True)
def no_key_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment of whoever runs the tests must not change them."""
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
