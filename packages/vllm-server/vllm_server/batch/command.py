"""``vllm run-batch``: its flags, and the way from them to the answers. Imports neither torch nor the web framework."""

import argparse
import asyncio

from vllm_engine.config import EngineArgs
from vllm_server.batch.config import BATCH_CONFIGS, BatchConfig, create_batch_config
from vllm_server.command_line import Program, Settings, add_program_arguments, run_program
from vllm_server.running.event_loop import loop_factory

PROGRAM = Program("vllm run-batch", BATCH_CONFIGS, own=BatchConfig)

EXIT_CODES = (
    "exit codes: 0 every line has its answer, be it an error; 1 the engine died, or a file or URL failed; 2 a setting, "
    "file or URL cannot be honoured; 130 Ctrl-C or SIGTERM. Answers are kept: the same command goes on after them."
)
"""What scripts must know, at the end of the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and all flags of the engine and the batch to ``parser``."""
    add_program_arguments(parser, PROGRAM)
    parser.epilog = EXIT_CODES


def run(namespace: argparse.Namespace) -> int:
    """Answer the requests of a file as the flags say.

    Returns:
        The exit code, one of ``EXIT_CODES``.
    """
    return run_program(PROGRAM, namespace, _run_settings)


def _run_settings(settings: Settings) -> int:
    engine_config = EngineArgs(**settings.engine).create_config()
    batch_config = create_batch_config(settings.server)
    from vllm_server.batch.run import run_batch

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run_batch(engine_config, batch_config))
