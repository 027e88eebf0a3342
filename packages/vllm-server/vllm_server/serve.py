"""``vllm serve``: its flags, and the way from them to a running server. Imports neither torch nor the web framework."""

import argparse
import asyncio
import sys
from typing import Any

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.cli import add_settings
from vllm_engine.config.config_file import write_config
from vllm_engine.config.engine_args import check_options
from vllm_engine.config.old_options import translate
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import configure_logging
from vllm_server.command_line import Settings, read_settings
from vllm_server.config import CONFIGS, DEFAULT_HOST, OldServerOptions, ServerConfig, create_server_config
from vllm_server.flag_words import in_flags
from vllm_server.sockets import bind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and all flags of the engine and the server to ``parser``."""
    # Not the usage that argparse would make: thirty lines of flags, which the help explains below it anyway.
    parser.usage = "%(prog)s [MODEL] [options]"
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="the model to serve; the same as --model")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; the command line wins over it")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the given settings as YAML for --config, with keys and tokens in clear, and end",
    )
    for config in CONFIGS:
        add_settings(parser, config)


def run(namespace: argparse.Namespace) -> int:
    """Serve as the flags say, until a signal comes.

    Returns:
        The exit code: 0 after SIGTERM or Ctrl-C, 1 when the engine died, 2 for a setting that cannot be honoured.
    """
    configure_logging()
    try:
        settings = read_settings(namespace)
        if namespace.print_config:
            print(_as_yaml(settings))
            return 0
        engine_config = EngineArgs(**settings.engine).create_config()
        return serve(engine_config, create_server_config(settings.server))
    except ConfigError as error:
        print(f"vllm serve: error: {in_flags(error, CONFIGS)}", file=sys.stderr)
        return 2
    except EngineDead as error:
        print(f"vllm serve: error: the engine could not start: {error}", file=sys.stderr)
        return 1


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> int:
    """Serve until a signal comes. Returns the exit code.

    Raises:
        ConfigError: for a setting that cannot be honoured; a port in use is found before the model is touched.
        EngineDead: when the engine core ends before it is ready.
    """
    from vllm_server import lifecycle

    listener = bind(server_config.host or DEFAULT_HOST, server_config.port)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(lifecycle.serve(engine_config, server_config, listener))


def _as_yaml(settings: Settings) -> str:
    server = check_options(ServerConfig, translate(settings.server, OldServerOptions))
    return write_config((ServerConfig, server), (EngineConfig, EngineArgs(**settings.engine).options))


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
