"""Flags come from the fields of the configuration groups, and mean what the fields mean."""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from vllm_engine.config import EngineArgs
from vllm_engine.config.cli import add_settings, given_settings
from vllm_engine.config.engine_args import check_options
from vllm_engine.config.option import option
from vllm_engine.config.settings import settings_of
from vllm_engine.config.values import integer
from vllm_engine.errors import ConfigError
from vllm_server.command_line import read_settings
from vllm_server.config import CONFIGS, create_server_config, load_chat_template
from vllm_server.serve import add_arguments


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One of each kind."""

    text: str = option("x", help="some text")
    maybe: str | None = option(None, help="perhaps a text")
    count: Annotated[int, Meta(ge=1)] | None = option(None, help="a number of 100 %")
    share: float = option(0.5, help="a fraction")
    switch: bool = option(True, help="a switch")
    kind: Literal["a", "b"] = option("a", help="one of two")
    words: list[str] = option(["w"], help="some words")
    numbers: list[int] | None = option(None, help="some numbers")
    table: dict[str, Any] = option({}, help="a table")
    renamed: str = option("", help="has a flag of its own", flag="--other-name")


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, Sample)
    return check_options(Sample, given_settings(parser.parse_args(arguments), Sample))


def test_what_is_not_given_is_not_there() -> None:
    assert parse() == {}


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--text", "hello"], {"text": "hello"}),
        (["--maybe=1"], {"maybe": "1"}),
        (["--count", "25.6k"], {"count": 25600}),
        (["--share", "1e-3"], {"share": 0.001}),
        (["--no-switch"], {"switch": False}),
        (["--switch"], {"switch": True}),
        (["--kind", "b"], {"kind": "b"}),
        (["--words", "a", "b", "--share", "1"], {"words": ["a", "b"], "share": 1.0}),
        (["--numbers", "1", "2K"], {"numbers": [1, 2048]}),
        (["--table", '{"a": {"b": [1]}}'], {"table": {"a": {"b": [1]}}}),
        (["--other-name", "y"], {"other_name": "y"}),
    ],
)
def test_each_kind_of_field_is_read(arguments: list[str], values: dict[str, Any]) -> None:
    assert parse(*arguments) == values


@pytest.mark.parametrize(
    "arguments",
    [
        ["--count", "many"],
        ["--count", "1.5"],
        ["--kind", "c"],
        ["--table", "[1]"],
        ["--table", "{"],
        ["--words"],
        ["--share", "x"],
        ["--renamed", "y"],
    ],
)
def test_what_cannot_be_read_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit, ConfigError)):
        parse(*arguments)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-1", -1),
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("25.6k", 25600),
        ("2M", 2 * 2**20),
        ("1g", 10**9),
    ],
)
def test_integers_may_have_a_multiplier(text: str, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "nan", "inf", "Infinityk", "1e9999999999", "0x10", "1kk", "--"])
def test_anything_else_is_no_integer(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        integer(text)


def test_the_help_tells_defaults_and_survives_a_percent_sign() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, Sample)
    text = parser.format_help()
    assert "some text (default: x)" in text
    assert "some words (default: w)" in text
    assert "a number of 100 %" in text
    assert "perhaps a text\n" in text


def test_every_setting_has_one_flag_and_one_help() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {action.dest: action for action in parser._actions}
    for config in CONFIGS:
        for name, setting in settings_of(config).items():
            assert setting.flag in known[name].option_strings
            assert setting.help


def test_flags_become_a_checked_configuration() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = ["demo", "--max-model-len", "4k", "--port", "9000", "--no-enable-prefix-caching", "--dtype", "bfloat16"]
    namespace = parser.parse_args(flags)
    settings = read_settings(namespace, CONFIGS)
    config = EngineArgs(**settings.engine).create_config()
    assert (config.model.max_model_len, config.model.dtype) == (4000, "bfloat16")
    assert config.cache.enable_prefix_caching is False
    assert create_server_config(settings.server).port == 9000
    assert namespace.model_tag == "demo"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"port": -1}, "port"),
        ({"root_path": "llm"}, "root_path"),
        ({"root_path": "/llm/"}, "root_path"),
        ({"uvicorn_log_level": "loud"}, "uvicorn_log_level"),
    ],
)
def test_a_server_setting_out_of_range_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        create_server_config(options)
    assert error.value.field == field
    assert field in str(error.value)


def test_a_chat_template_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    assert load_chat_template(None) is None
    assert load_chat_template("{{ messages }}") == "{{ messages }}"
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}é{% endfor %}", encoding="utf-8")
    assert load_chat_template(str(path)) == "{% for m in messages %}é{% endfor %}"
    for wrong in ("no/such/file", "", str(tmp_path), "x" * 10000, "a\nb"):
        with pytest.raises(ConfigError, match="chat_template"):
            load_chat_template(wrong)


@pytest.mark.parametrize("module", ["vllm_server.serve", "vllm_server.config", "vllm_engine.config.cli"])
def test_parsing_flags_imports_neither_torch_nor_the_web_framework(module: str) -> None:
    code = (
        f"import sys, argparse, {module}, vllm_server.serve as s; s.add_arguments(argparse.ArgumentParser());"
        "print([m for m in ('torch','transformers','fastapi','starlette','uvicorn','pydantic','numpy') "
        "if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_application_itself_needs_no_torch() -> None:
    code = (
        "import sys, vllm_server.app, vllm_server.running.lifecycle, vllm_server.running.uvicorn_server;"
        "import vllm_server.telemetry.metrics;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
