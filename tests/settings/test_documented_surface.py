"""Every documented flag is there: default, choices, short and ``--no-`` forms; as flag, keyword and YAML key."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.settings.documented import NEWER, OWN_CHOICES, Documented, engine_arguments, older_arguments
from vllm_cli import help_pages
from vllm_cli.option_parser import OptionParser
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.config_file import read_config_file
from vllm_engine.config.engine_args import build, check_options
from vllm_engine.config.old_options import OldOptions, translate
from vllm_engine.config.settings import Setting, settings_of
from vllm_engine.config.values import choices_of
from vllm_engine.errors import ConfigError
from vllm_server.config import CONFIGS, OldServerOptions, ServerConfig
from vllm_server.serve import add_arguments

ENGINE = engine_arguments()
OLDER = [argument for argument in older_arguments() if argument.flag != "--config"]
EVERY = [*ENGINE, *OLDER]
SETTINGS: dict[str, Setting] = {setting.flag: setting for config in CONFIGS for setting in settings_of(config).values()}


@functools.cache
def serve_parser() -> OptionParser:
    parser = OptionParser(prog="vllm serve", allow_abbrev=False)
    add_arguments(parser)
    return parser


def sample(argument: Documented) -> Any:
    """A value that is not the default, as YAML or a keyword has it."""
    setting = SETTINGS[argument.flag]
    if argument.type == "bool":
        return not argument.default
    choices = choices_of(setting.hint)
    if choices:
        value = next(choice for choice in reversed(choices) if choice != argument.default)
        return [value] if isinstance(setting.default, list) or "list" in str(setting.hint) else value
    samples = {
        "int": 7,
        "human-int": 7,
        "float": 0.5,
        "str": "some/thing",
        "list": ["7"],
        "json": {},
        "enum": "a_plugin",
    }
    if argument.type == "json" and isinstance(argument.default, list):
        return ["a"]
    return {"root_path": "/llm", "optimization_level": 1}.get(argument.name, samples[argument.type])


def words(argument: Documented) -> list[str]:
    """The flag with that value, as a shell gives it."""
    value = sample(argument)
    if argument.type == "bool":
        return [argument.flag if value else f"--no-{argument.flag[2:]}"]
    if argument.type == "json":
        return [argument.flag, json.dumps(value)]
    return [argument.flag, *(map(str, value) if isinstance(value, list) else [str(value)])]


def config_of(argument: Documented) -> type[Any]:
    return next(config for config in CONFIGS if argument.name in settings_of(config))


def test_all_documented_flags_are_counted() -> None:
    assert len(ENGINE) == 194
    assert {argument.name for argument in ENGINE} == set(settings_of(EngineConfig)) - NEWER


@pytest.mark.parametrize("argument", EVERY, ids=str)
def test_it_stands_in_the_full_help(argument: Documented) -> None:
    help_text = _full_help()
    assert f"\n  {argument.flag}" in help_text
    assert SETTINGS[argument.flag].help.split()[0] in help_text


@functools.cache
def _full_help() -> str:
    return help_pages.find(serve_parser(), "all") or ""


@pytest.mark.parametrize("argument", EVERY, ids=str)
def test_its_default_is_the_documented_one(argument: Documented) -> None:
    default = SETTINGS[argument.flag].default
    ours = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default  # type: ignore[arg-type]
    assert ours == argument.default


@pytest.mark.parametrize("argument", [one for one in EVERY if one.choices], ids=str)
def test_its_choices_are_the_documented_ones_and_nothing_else_is_taken(argument: Documented) -> None:
    setting = SETTINGS[argument.flag]
    if not choices_of(setting.hint):
        pytest.skip("any name may be registered by a plugin")
    for choice in argument.choices:
        given = choice.split(",") if isinstance(choice, str) and "," in choice else choice
        check_options(config_of(argument), {argument.name: given})
    alone = {choice for choice in argument.choices if choice is not None and "," not in str(choice)}
    assert set(choices_of(setting.hint)) == alone | OWN_CHOICES.get(argument.name, set())
    with pytest.raises(ConfigError, match=argument.name):
        check_options(config_of(argument), {argument.name: "no such choice"})


@pytest.mark.parametrize("argument", EVERY, ids=str)
def test_it_is_read_from_the_command_line_in_each_spelling(argument: Documented) -> None:
    expected = check_options(config_of(argument), {argument.name: sample(argument)})
    flag, *values = words(argument)
    spellings = [[flag, *values], ["--" + flag[2:].replace("-", "_"), *values]]
    if len(values) == 1:
        spellings.append([f"{flag}={values[0]}"])
    if sample(argument) is not False:
        spellings += [[short, *values] for short in argument.short]
    for spelling in spellings:
        namespace = vars(serve_parser().parse_args(spelling))
        assert check_options(config_of(argument), {argument.name: namespace[argument.name]}) == expected


@pytest.mark.parametrize("argument", [one for one in EVERY if one.negatable], ids=str)
def test_a_switch_can_be_switched_off(argument: Documented) -> None:
    assert vars(serve_parser().parse_args([f"--no-{argument.flag[2:]}"]))[argument.name] is False


@pytest.mark.parametrize("argument", EVERY, ids=str)
def test_it_is_a_key_of_the_yaml_file(argument: Documented, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    for key in (argument.flag[2:], argument.name):
        path.write_text(yaml.safe_dump({key: sample(argument)}))
        assert read_config_file(str(path), *CONFIGS) == {argument.name: sample(argument)}


@pytest.mark.parametrize("argument", ENGINE, ids=str)
def test_it_is_a_keyword_of_the_engine(argument: Documented) -> None:
    args = EngineArgs(**{argument.name: sample(argument)})
    setting = SETTINGS[argument.flag]
    held = setting.value_in(build(EngineConfig, args.options))
    if setting.keys is None:
        assert held == args.options[argument.name] == getattr(args, argument.name)


@pytest.mark.parametrize("argument", [one for one in OLDER if one.name in settings_of(OldOptions)], ids=str)
def test_an_old_flag_becomes_new_ones_or_nothing_with_one_warning(
    argument: Documented, caplog: pytest.LogCaptureFixture
) -> None:
    setting = SETTINGS[argument.flag]
    if setting.facts["refused"]:
        with pytest.raises(ConfigError, match=argument.name):
            translate({argument.name: sample(argument)})
        return
    with caplog.at_level("WARNING"):
        new = translate({argument.name: sample(argument)})
    assert set(new) <= set(settings_of(EngineConfig))
    (record,) = caplog.records
    message = record.getMessage()
    assert argument.flag in message
    assert bool(new) != ("has no effect" in message) or argument.type == "bool"
    named = [word.strip(".,;") for word in message.replace(":", " ").split() if word.startswith("--")][1:]
    for flag in named:
        assert flag.partition(".")[0].removeprefix("--no-").removeprefix("--").replace("-", "_") in settings_of(
            EngineConfig
        )


def test_the_old_level_flag_is_understood_in_all_its_forms() -> None:
    for arguments, expected in (
        (["-O3"], {"optimization_level": 3}),
        (["-O", "3"], {"optimization_level": 3}),
        (["-O=3"], {"optimization_level": 3}),
        (["-O", '{"level": 3}'], {"compilation_config": {"mode": 3}}),
        (["-cc", "3"], {"compilation_config": {"mode": 3}}),
        (["-cc.mode", "3"], {"compilation_config": {"mode": 3}}),
        (["--compilation-config.level=3"], {"compilation_config": {"mode": 3}}),
        (["-tp2"], {"tensor_parallel_size": 2}),
    ):
        given = {
            name: value
            for name, value in vars(serve_parser().parse_args(arguments)).items()
            if name in settings_of(EngineConfig)
        }
        assert EngineArgs(**given).options == expected, arguments


def test_no_flag_belongs_to_two_settings() -> None:
    spellings = [flag for setting in SETTINGS.values() for flag in (setting.flag, *setting.short)]
    assert len(spellings) == len(set(spellings))
    assert set(settings_of(OldServerOptions)) | set(settings_of(ServerConfig)) | NEWER >= {
        one.name for one in OLDER if one.name not in settings_of(OldOptions)
    }


def test_argparse_without_our_parser_reads_the_flags_too() -> None:
    """Scripts of users build their own parser around the engine's flags."""
    parser = argparse.ArgumentParser()
    EngineArgs.add_cli_args(parser)
    args = EngineArgs.from_cli_args(parser.parse_args(["--model", "demo", "--max-model-len", "1K", "--enforce-eager"]))
    assert (args.model, args.max_model_len, args.enforce_eager) == ("demo", 1024, True)
