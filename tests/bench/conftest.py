"""Fixtures of the benchmark tests: those of the command line."""

from tests.cli.conftest import no_key_of_the_developer, server

__all__ = ["no_key_of_the_developer", "server"]
