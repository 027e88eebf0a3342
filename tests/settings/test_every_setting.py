"""No setting is ignored in silence: a value other than the default has an effect, is refused, or is said to be idle."""

import ast
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from tests.engine.fake_cuda import pretend_gpu
from tests.settings.effects import EFFECTS
from vllm_engine.config import EngineArgs, EngineConfig
from vllm_engine.config.device import DeviceKind
from vllm_engine.config.settings import Setting, keys_of, settings_of
from vllm_engine.config.support import standing
from vllm_engine.config.values import choices_of, convert
from vllm_engine.errors import ConfigError
from vllm_server.config import ServerConfig, create_server_config

ROOT = Path(__file__).parents[2]

SETTINGS: list[tuple[type[Any], Setting]] = [
    (config, setting) for config in (EngineConfig, ServerConfig) for setting in settings_of(config).values()
]
DEVICES: tuple[DeviceKind, ...] = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def _any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)


@functools.cache
def _functions(file: str) -> dict[str, str]:
    """Source of each test of a file, with its decorators and whatever else of the file it names."""
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    tree = ast.parse(text)
    parts: dict[str, str] = {}
    uses: dict[str, set[str]] = {}
    for node in tree.body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        names += [node.name] if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else []
        sources = [ast.get_source_segment(text, part) or "" for part in (*getattr(node, "decorator_list", []), node)]
        for name in names:
            parts[name] = "\n".join(sources)
            uses[name] = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            uses[name] |= {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    return {name: "\n".join(parts[part] for part in _closure(name, uses)) for name in parts if name.startswith("test_")}


def _closure(name: str, uses: dict[str, set[str]]) -> set[str]:
    """A name of a file with all that it uses of the file, and what these use."""
    found, new = {name}, {name}
    while new:
        new = {used for one in new for used in uses[one] & uses.keys()} - found
        found |= new
    return found


def proofs() -> dict[str, list[str]]:
    """The tests that show the effect of each setting: those that bear its name, and those of the table."""
    found = {name: list(places) for name, places in EFFECTS.items()}
    for test in _functions("settings/test_effects.py"):
        found.setdefault(test.removeprefix("test_effect_of_"), []).append(f"settings/test_effects.py::{test}")
    return found


def differs(setting: Setting, device: DeviceKind) -> bool:
    """Whether a device is worth a test of its own: the CPU, and a GPU where the declaration says something about it."""
    return device == "cpu" or setting.facts["cuda"] is not None


def named(kind: str) -> list[Any]:
    return [
        pytest.param(device, config, one, id=one.name if device == "cpu" else f"{one.name}-{device}")
        for device in DEVICES
        for config, one in SETTINGS
        if one.keys is None and differs(one, device) and standing(one, device) == kind
    ]


def nested_keys(kind: str) -> list[Any]:
    """Keys of an object, with its name; not those that can have one value only."""
    return [
        pytest.param(device, config, setting.name, key, id=f"{setting.name}.{key.name}-{device}")
        for device in DEVICES
        for config, setting in SETTINGS
        if setting.keys is not None
        for key in keys_of(setting.keys).values()
        if key.keys is None
        and differs(key, device)
        and standing(key, device) == kind
        and choices_of(key.hint) != (key.default,)
    ]


def other_value(setting: Setting, device: DeviceKind = "cpu") -> Any:
    """A value that fits the type, and is neither the default nor one that is honoured."""
    candidates = [*choices_of(setting.hint), True, False, 3, 0.25, "some-thing", ["some-thing"], [3], {"some": 3}]
    candidates += [{"some": {"thing": 3}}, {"some": "thing"}, *([choice] for choice in choices_of(setting.hint))]
    for value in candidates:
        try:
            converted = convert(setting, value)
        except ConfigError:
            continue
        honoured = [setting.default, *setting.support_on(device).possible]
        if type(converted) is type(value) and not any(
            converted == one and type(converted) is type(one) for one in honoured
        ):
            return value
    raise AssertionError(f"no other value is known for {setting.name}")


def configure(device: DeviceKind, config: type[Any], options: dict[str, Any]) -> Any:
    if config is EngineConfig:
        return EngineArgs("demo", **{"device": device, **options}).create_config()
    return create_server_config(options)


@pytest.mark.parametrize(("device", "config", "setting"), named("refused"))
def test_what_cannot_be_honoured_is_refused_with_what_is_possible(
    device: DeviceKind, config: type[Any], setting: Setting
) -> None:
    value = other_value(setting, device)
    with pytest.raises(ConfigError) as caught:
        configure(device, config, {setting.name: value})
    message = str(caught.value)
    assert caught.value.field == setting.name
    assert message.startswith(f"{setting.name}=")
    assert "cannot be honoured: " in message
    assert "; possible: " in message


@pytest.mark.parametrize(("device", "config", "setting"), named("refused"))
def test_the_values_that_are_said_to_be_possible_are_taken(
    device: DeviceKind, config: type[Any], setting: Setting
) -> None:
    for value in (setting.default, *setting.support_on(device).possible):
        configure(device, config, {setting.name: value})


@pytest.mark.parametrize(("device", "config", "setting"), named("no effect"))
def test_what_has_no_effect_is_said_in_the_log(
    device: DeviceKind, config: type[Any], setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        configure(device, config, {setting.name: other_value(setting, device)})
    assert [record.getMessage() for record in caplog.records if f"{setting.name}=" in record.getMessage()]
    caplog.clear()
    with caplog.at_level("INFO"):
        configure(device, config, {setting.name: setting.default})
    assert not caplog.records


@pytest.mark.parametrize(("device", "config", "name", "key"), nested_keys("refused"))
def test_a_key_of_an_object_is_refused_in_the_same_way(
    device: DeviceKind, config: type[Any], name: str, key: Setting
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{name}\.{key.path[-1]}=.* cannot be honoured: .*; possible: |^{key.name}="
    ):
        configure(device, config, {name: {key.path[-1]: other_value(key, device)}})


@pytest.mark.parametrize(("device", "config", "name", "key"), nested_keys("no effect"))
def test_a_key_without_effect_is_said_in_the_log(
    device: DeviceKind, config: type[Any], name: str, key: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    configure(device, config, {name: {key.path[-1]: other_value(key, device)}})
    assert f"{name}.{key.path[-1]}=" in caplog.text


def standings(setting: Setting) -> set[str]:
    return {standing(setting, device) for device in DEVICES}


def test_every_setting_with_an_effect_has_a_test_that_shows_it() -> None:
    effective = {setting.name for _, setting in SETTINGS if "effect" in standings(setting)}
    partly = {setting.name for _, setting in SETTINGS for device in DEVICES if setting.support_on(device).possible}
    assert effective - proofs().keys() == set()
    assert proofs().keys() - effective - partly == set()


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, places in proofs().items() for place in places])
def test_the_named_tests_exist_and_use_the_setting(name: str, place: str) -> None:
    setting = next(setting for _, setting in SETTINGS if setting.name == name)
    file, _, function = place.partition("::")
    body = _functions(file).get(function)
    assert body is not None, f"{place} does not exist"
    assert any(word in body for word in (name, setting.flag)), f"{place} does not use {name}"


def test_settings_of_groups_are_fields_of_frozen_dataclasses() -> None:
    for config, setting in SETTINGS:
        holder = functools.reduce(getattr, setting.path[:-1], config())
        assert dataclasses.is_dataclass(holder)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, setting.path[-1], setting.default)
