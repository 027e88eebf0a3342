"""``vllm serve``: its flags, and the way from them to a running server. Imports neither torch nor the web framework."""

import argparse
import asyncio
import contextlib

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.logging import configure_logging, get_logger, startup_phase
from vllm_server.command_line import Program, Settings, add_program_arguments, run_program
from vllm_server.config import CONFIGS, DEFAULT_HOST, OldServerOptions, ServerConfig, create_server_config
from vllm_server.relations import check_relations_to_engine
from vllm_server.running.event_loop import loop_factory
from vllm_server.running.sockets import tcp_sockets, unix_socket

logger = get_logger(__name__)

PROGRAM = Program("vllm serve", CONFIGS, own=ServerConfig, old=OldServerOptions)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and all flags of the engine and the server to ``parser``."""
    add_program_arguments(parser, PROGRAM)


def run(namespace: argparse.Namespace) -> int:
    """Serve as the flags say, until a signal comes.

    Returns:
        The exit code: 0 after SIGTERM or Ctrl-C, 1 when the engine died, 2 for a setting that cannot be honoured.
    """
    return run_program(PROGRAM, namespace, _serve_settings)


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    """Serve until a signal comes. Returns the exit code.

    Raises:
        ConfigError: for a setting that cannot be honoured; a port in use is found before the model is touched.
        EngineDead: when the engine core ends before it is ready.
    """
    with startup_phase(logger, "server imports", {}):
        from vllm_server.running import lifecycle
        from vllm_server.running.open_files import allow_many_files

    count = server_config.api_server_count
    allow_many_files()
    with contextlib.ExitStack() as stack:
        if server_config.uds is not None:
            listeners = [stack.enter_context(unix_socket(server_config.uds))] * count
        else:
            listeners = stack.enter_context(tcp_sockets(server_config.host or DEFAULT_HOST, server_config.port, count))
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory()))
        if count == 1:
            return runner.run(lifecycle.serve(engine_config, server_config, listeners[0]))
        from vllm_server.running import several

        return runner.run(several.serve(engine_config, server_config, listeners))


def _serve_settings(settings: Settings) -> int:
    with startup_phase(logger, "config", {}):
        server_config = create_server_config(settings.server)
        if server_config.log_config_file is not None or server_config.log_format != "text":
            configure_logging(config_file=server_config.log_config_file, style=server_config.log_format)
        engine_config = EngineArgs(**settings.engine).create_config()
        check_relations_to_engine(server_config, engine_config)
    return serve(engine_config, server_config)
