"""What the commands that start an engine share: their arguments, ``--config``, ``--print-config``, error lines.

A command says by a ``Program`` which settings it has beside those of the engine; the rest is the same for all.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.cli import add_settings, given_settings
from vllm_engine.config.config_file import lay_over, read_config_file, write_config
from vllm_engine.config.engine_args import check_options
from vllm_engine.config.old_options import OldOptions, translate
from vllm_engine.config.settings import settings_of
from vllm_engine.errors import ConfigError, EngineDead
from vllm_engine.logging import configure_logging
from vllm_server.flag_words import in_flags


@dataclass(frozen=True, slots=True)
class Program:
    """A command and its settings.

    ``configs`` are the configuration dataclasses that may stand on its command line and in its YAML file; among them
    are ``own``, what it has beside the engine's, and ``old``, the own settings of earlier versions.
    """

    name: str
    configs: tuple[type[Any], ...]
    own: type[Any] | None = None
    old: type[Any] | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings by name, as they were written; old ones are not yet translated.

    ``engine`` are those of the engine, ``server`` those of the program, which this wheel declares.
    """

    engine: dict[str, Any]
    server: dict[str, Any]


def add_program_arguments(parser: argparse.ArgumentParser, program: Program) -> None:
    """Add the model, ``--config``, ``--print-config`` and a flag for each setting of ``program``."""
    # Not the usage that argparse would make: thirty lines of flags, which the help explains below it anyway.
    parser.usage = "%(prog)s [MODEL] [options]"
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="the model to run; the same as --model")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; the command line wins over it")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the given settings as YAML for --config, with keys and tokens in clear, and end",
    )
    for config in program.configs:
        add_settings(parser, config)


def run_program(program: Program, namespace: argparse.Namespace, work: Callable[[Settings], int]) -> int:
    """Read the settings of a parsed command line and do ``work`` with them, unless only their YAML is asked for.

    Returns:
        The exit code of ``work``; or, after one line on stderr, 2 for a setting that cannot be honoured and 1 for an
        engine that could not start.
    """
    try:
        configure_logging()
        settings = read_settings(namespace, program.configs)
        if namespace.print_config:
            print(_as_yaml(settings, program))
            return 0
        return work(settings)
    except ConfigError as error:
        print(f"{program.name}: error: {in_flags(error, program.configs)}", file=sys.stderr)
        return 2
    except EngineDead as error:
        print(f"{program.name}: error: the engine could not start: {error}", file=sys.stderr)
        return 1


def read_settings(namespace: argparse.Namespace, configs: tuple[type[Any], ...]) -> Settings:
    """The settings of a parsed command line and of the file that its ``config`` names.

    Raises:
        ConfigError: for a file that cannot be read, when two models are named, or one is taken for a key.
    """
    given = given_settings(namespace, *configs)
    tag = getattr(namespace, "model_tag", None)
    if tag is not None:
        if given.get("model", tag) != tag:
            raise ConfigError(f"two models are named: {tag} and --model {given['model']}", field="model")
        given["model"] = tag
    for name in ("api_key", "admin_api_key"):
        if "model" not in given and len(given.get(name, ())) > 1:
            # `--api-key KEY demo` would serve another model than demo, to everyone who guesses the key "demo".
            raise ConfigError(f"{name} takes every word after it: name the model before it, or by --model", field=name)
    if getattr(namespace, "config", None):
        in_file = read_config_file(namespace.config, *configs)
        given = lay_over(in_file, given, getattr(namespace, "only_keys", set()))
    engine = settings_of(EngineConfig).keys() | settings_of(OldOptions).keys()
    return Settings(
        engine={name: value for name, value in given.items() if name in engine},
        server={name: value for name, value in given.items() if name not in engine},
    )


def _as_yaml(settings: Settings, program: Program) -> str:
    engine = (EngineConfig, EngineArgs(**settings.engine).options)
    if program.own is None:
        return write_config(engine)
    own = settings.server if program.old is None else translate(settings.server, program.old)
    return write_config((program.own, check_options(program.own, own)), engine)
