"""Fixtures of the benchmark tests."""

from tests.cli.conftest import no_key_of_the_developer

__all__ = ["no_key_of_the_developer"]
