"""``--print-config`` writes YAML that ``--config`` reads back as the same configuration, whatever it is."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.settings.values import values_of
from vllm_cli.main import main
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.config_file import lay_over, read_config_file, write_config
from vllm_engine.config.engine_args import build, check_options
from vllm_engine.config.settings import settings_of
from vllm_engine.errors import ConfigError
from vllm_server.config import ServerConfig

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


def options_of(config: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A few settings of a configuration with values that they take."""
    known = settings_of(config)
    return st.lists(st.sampled_from(sorted(known)), max_size=6, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values_of(known[name]) for name in names})
    )


def printed(*arguments: str) -> str:
    """What ``vllm serve --print-config`` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["serve", *arguments, "--print-config"]) == 0
    return out.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(engine=options_of(EngineConfig), server=options_of(ServerConfig))
@example(engine={"generation_config": "\x85", "model": "\u2028"}, server={"response_role": "a\u2029\ufeff\n b"})
def test_any_configuration_survives_the_way_through_a_file(
    engine: dict[str, Any], server: dict[str, Any], tmp_path: Path
) -> None:
    engine_options = check_options(EngineConfig, engine)
    server_options = check_options(ServerConfig, server)
    path = tmp_path / "settings.yaml"
    path.write_text(write_config((ServerConfig, server_options), (EngineConfig, engine_options)), encoding="utf-8")

    once = printed("--config", str(path))
    path.write_text(once, encoding="utf-8")
    again = read_config_file(str(path), ServerConfig, EngineConfig)

    read_engine = check_options(
        EngineConfig, {name: again[name] for name in again if name in settings_of(EngineConfig)}
    )
    read_server = check_options(
        ServerConfig, {name: again[name] for name in again if name in settings_of(ServerConfig)}
    )
    assert (read_engine, read_server) == (engine_options, server_options)
    try:
        config = build(EngineConfig, engine_options)
    except ConfigError:  # two spellings of one value that differ: refused either way
        with pytest.raises(ConfigError):
            build(EngineConfig, read_engine)
    else:
        assert build(EngineConfig, read_engine) == config
    assert printed("--config", str(path)) == once


def test_flags_become_a_file_that_means_the_same(tmp_path: Path) -> None:
    flags = ["demo", "--max_model_len", "25.6k", "--no-enable-prefix-caching", "-tp2", "--served-model-name", "a", "b"]
    flags += ["--hf-overrides.rope_theta", "1e4", "--ignore-patterns", "*.bin", "--allowed-origins", '["http://a"]']
    flags += ["--structured-outputs-config.backend=auto", "--compilation-config.custom_ops+=a,b", "--swap-space", "4"]
    path = tmp_path / "settings.yml"
    path.write_text(printed(*flags))
    read = read_config_file(str(path), ServerConfig, EngineConfig)
    assert read.pop("allowed_origins") == ["http://a"]
    assert EngineArgs(**read).options == {
        "model": "demo",
        "max_model_len": 25600,
        "enable_prefix_caching": False,
        "tensor_parallel_size": 2,
        "served_model_name": ["a", "b"],
        "hf_overrides": {"rope_theta": 10000.0},
        "ignore_patterns": ["*.bin"],
        "structured_outputs_config": {"backend": "auto"},
        "compilation_config": {"custom_ops": ["a", "b"]},
    }


def test_the_command_line_wins_over_the_file_and_keys_are_laid_over_its_objects(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "model: in-file\nport: 1\nmax_num_seqs: 4k\nno-enable-prefix-caching: true\n"
        "hf-overrides: {rope_theta: 1, rope_scaling: {factor: 2, rope_type: linear}}\nadditional-config: {a: 1}\n"
    )
    flags = ["demo", "--config", str(path), "--port", "2", "--hf-overrides.rope_scaling.factor", "3"]
    assert printed(*flags, "--additional-config", '{"b": 2}').splitlines() == [
        "# Frontend",
        "port: 2",
        "# ModelConfig",
        "model: demo",
        "hf-overrides:",
        "  rope_theta: 1",
        "  rope_scaling:",
        "    factor: 3",
        "    rope_type: linear",
        "# CacheConfig",
        "enable-prefix-caching: false",
        "# SchedulerConfig",
        "max-num-seqs: 4000",
        "# VllmConfig",
        "additional-config:",
        "  b: 2",
    ]


@pytest.mark.parametrize("key", ["model", "model_tag", "model-tag"])
def test_the_file_may_name_the_model(tmp_path: Path, key: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"{key}: some/model\n")
    assert printed("--config", str(path)) == "# ModelConfig\nmodel: some/model\n"


def test_laying_over_replaces_whole_objects_and_merges_keys() -> None:
    base = {"a": {"x": 1, "y": {"z": 1}}, "b": 1}
    assert lay_over(base, {"a": {"x": 2}}, set()) == {"a": {"x": 2}, "b": 1}
    assert lay_over(base, {"a": {"y": {"w": 2}}, "b": 3}, {"a", "b"}) == {"a": {"x": 1, "y": {"z": 1, "w": 2}}, "b": 3}
