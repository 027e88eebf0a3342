"""Fixtures of the command-line tests."""

import logging
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


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """The server configures logging; the tests that follow want it as they found it."""
    trees = [
        logging.getLogger(name) for name in ("vllm_kernels", "vllm_engine", "vllm_server", "vllm_cli", "vllm_bench")
    ]
    before = [(list(tree.handlers), tree.level, tree.propagate) for tree in trees]
    yield
    for tree, (handlers, level, propagate) in zip(trees, before, strict=True):
        tree.handlers[:] = handlers
        tree.setLevel(level)
        tree.propagate = propagate
