"""The settings of the engine on a benchmark's command line: flags, YAML file and errors as of ``vllm serve``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_cli.registry import missing

if TYPE_CHECKING:
    from vllm_server.command_line import Program

_WHEELS = ("vllm_server", "vllm_engine", "vllm_kernels")

NOT_PROFILED = "a benchmark is not profiled; `vllm serve` and LLM are, by --profiler-config and /start_profile"
"""Why ``--profile`` is refused."""


def add_engine_arguments(parser: ArgumentParser, benchmark: str) -> None:
    """MODEL, ``--config``, ``--print-config`` and every flag of the engine, under the headings of ``vllm serve``.

    Raises:
        CommandError: (exit code 2) the engine is not installed.
    """
    program = _program(benchmark)
    from vllm_server.command_line import add_program_arguments

    add_program_arguments(parser, program)


def run_with_engine(benchmark: str, options: Namespace, work: Callable[[dict[str, Any]], int]) -> int:
    """``work`` with the given settings of the engine, by name; returns its exit code.

    A setting that cannot be honoured is one line, and code 2.
    """
    program = _program(benchmark)
    from vllm_server.command_line import run_program

    return run_program(program, options, lambda settings: work(settings.engine))


def mark_common(parser: ArgumentParser, options: Iterable[str]) -> None:
    """Put these options on the short page of ``--help``."""
    chosen = set(options)
    for action in parser._actions:
        if chosen.intersection(action.option_strings):
            action.common = True  # type: ignore[attr-defined]


def _program(benchmark: str) -> "Program":
    try:
        from vllm_engine.config import EngineConfig
        from vllm_engine.config.old_options import OldOptions
        from vllm_server.command_line import Program
    except ModuleNotFoundError as error:
        # Only a wheel of ours that is absent is the user's to install; anything else is a fault to be seen.
        if error.name in _WHEELS:
            raise missing(f"bench {benchmark}", "serve") from error
        raise
    return Program(f"vllm bench {benchmark}", (EngineConfig, OldOptions))
