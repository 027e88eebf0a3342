"""``vllm serve``: start the server. The options and the work are those of the vllm-server wheel."""

from argparse import ArgumentParser, Namespace
from types import ModuleType

from vllm_cli.command import Command, CommandError
from vllm_cli.registry import missing

_WHEELS = ("vllm_server", "vllm_engine", "vllm_kernels")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of ``vllm_server.serve``."""
    _server().add_arguments(parser)


def run(options: Namespace) -> int:
    """Serve until told to stop; returns the server's exit code."""
    server = _server()
    from vllm_engine.errors import ConfigError

    try:
        code: int = server.run(options)
    except ConfigError as error:
        raise CommandError(str(error), exit_code=2) from error
    return code


def _server() -> ModuleType:
    try:
        from vllm_server import serve
    except ModuleNotFoundError as error:
        # Only a wheel of ours that is absent is the user's to install; anything else is a fault to be seen.
        if error.name in _WHEELS:
            raise missing("serve", "serve") from error
        raise
    return serve


COMMAND = Command("Start an OpenAI-compatible server", add_arguments, run)
