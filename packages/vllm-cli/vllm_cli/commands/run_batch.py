"""``vllm run-batch``: answer the requests of a file. The options and the work are those of the vllm-server wheel."""

from argparse import ArgumentParser, Namespace
from types import ModuleType

from vllm_cli.command import Command
from vllm_cli.registry import missing

_WHEELS = ("vllm_server", "vllm_engine", "vllm_kernels")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``vllm_server.batch.command``."""
    _batch().add_arguments(parser)


def run(options: Namespace) -> int:
    """Answer every line of the input; returns the exit code."""
    code: int = _batch().run(options)
    return code


def _batch() -> ModuleType:
    try:
        from vllm_server.batch import command as batch
    except ModuleNotFoundError as error:
        # Only a wheel of ours that is absent is the user's to install; anything else is a fault to be seen.
        if error.name in _WHEELS:
            raise missing("run-batch", "serve") from error
        raise
    return batch


COMMAND = Command("Answer the requests of a file, without a server", add_arguments, run)
