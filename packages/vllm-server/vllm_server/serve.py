"""``vllm serve``: its flags, and the way from them to a running server. Imports neither torch nor the web framework."""

import argparse
import asyncio
import dataclasses
import sys
from typing import Any

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.cli import add_group_arguments, values_from_namespace
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import configure_logging
from vllm_server.config import ServerConfig, create_server_config
from vllm_server.flag_words import in_flags
from vllm_server.sockets import bind

ENGINE_GROUPS: tuple[type[Any], ...] = tuple(field.type for field in dataclasses.fields(EngineConfig))  # type: ignore[misc]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and all flags of the engine and the server to ``parser``."""
    # Not the usage that argparse would make: thirty lines of flags, which the help explains below it anyway.
    parser.usage = "%(prog)s [MODEL] [options]"
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="the model to serve; the same as --model")
    add_group_arguments(parser, ServerConfig)
    for group in ENGINE_GROUPS:
        add_group_arguments(parser, group)


def run(namespace: argparse.Namespace) -> int:
    """Serve as the flags say, until a signal comes.

    Returns:
        The exit code: 0 after SIGTERM or Ctrl-C, 1 when the engine died, 2 for a setting that cannot be honoured.
    """
    configure_logging()
    try:
        engine_config = EngineArgs(**_engine_options(namespace)).create_config()
        server_config = create_server_config(values_from_namespace(namespace, ServerConfig))
        return serve(engine_config, server_config)
    except ConfigError as error:
        print(f"vllm serve: error: {in_flags(error, (ServerConfig, *ENGINE_GROUPS))}", file=sys.stderr)
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

    listener = bind(server_config.host, server_config.port)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(lifecycle.serve(engine_config, server_config, listener))


def _engine_options(namespace: argparse.Namespace) -> dict[str, Any]:
    options = values_from_namespace(namespace, *ENGINE_GROUPS)
    tag = getattr(namespace, "model_tag", None)
    if tag is not None:
        if options.get("model", tag) != tag:
            raise ConfigError(f"two models are named: {tag} and --model {options['model']}", field="model")
        options["model"] = tag
    return options


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
