"""What this version cannot honour: refused before anything is loaded; and what changes nothing: said once."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from vllm_engine.config.device import DeviceKind
from vllm_engine.config.settings import Setting, keys_of, settings_of
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)


def refuse_unsupported(config: Any, device: DeviceKind = "cpu") -> None:
    """Raise ``ConfigError`` for the first setting whose value this version cannot honour on a device.

    The message has the setting, what was asked, why not, and what is possible.
    """
    for name, setting, value in values_of(config):
        support = setting.support_on(device)
        if support.unsupported and value != setting.default and value not in support.possible:
            raise ConfigError(
                f"{name}={shown(value)} cannot be honoured: {support.unsupported}; "
                f"possible: {possible(setting, device)}",
                field=name,
            )


def tell_no_effect(config: Any, device: DeviceKind = "cpu") -> None:
    """Log one line for each setting that was changed and changes nothing on a device."""
    for name, setting, value in values_of(config):
        because = setting.support_on(device).no_effect
        if because and value != setting.default:
            logger.warning("%s=%s has no effect: %s", name, shown(value), because)


def values_of(config: Any) -> Iterator[tuple[str, Setting, Any]]:
    """Name, declaration and value of every setting; keys of JSON settings are named ``attention_config.backend``."""
    for setting in settings_of(type(config)).values():
        value = setting.value_in(config)
        if setting.keys is None:
            yield setting.name, setting, value
        else:
            yield from _keys(setting.name, setting.keys, value)


def _keys(name: str, group: type[Any], value: Any) -> Iterator[tuple[str, Setting, Any]]:
    for key, setting in keys_of(group).items():
        if setting.facts.get("nested_only"):  # the others are settings of their own
            yield f"{name}.{key}", setting, getattr(value, key)


def possible(setting: Setting, device: DeviceKind = "cpu") -> str:
    """The values that are honoured on a device, in words."""
    values = [setting.default, *setting.support_on(device).possible]
    return ", ".join("unset" if value is None or value == "" else shown(value) for value in values)


def shown(value: Any) -> str:
    """A value as the command line and YAML write it: ``true``, ``{"a": 1}``."""
    return value if isinstance(value, str) else json.dumps(value)


def standing(setting: Setting, device: DeviceKind = "cpu") -> Literal["effect", "refused", "no effect"]:
    """What this version does on a device about a value other than the default: honour it, refuse it, say it is idle.

    A setting that refuses some values and honours others counts as refusing; an object of keys counts as having an
    effect when one of its keys has.
    """
    if setting.keys is not None:
        inner = {standing(key, device) for key in keys_of(setting.keys).values()}
        return "effect" if "effect" in inner else "refused"
    support = setting.support_on(device)
    if support.unsupported:
        return "refused"
    return "no effect" if support.no_effect else "effect"
