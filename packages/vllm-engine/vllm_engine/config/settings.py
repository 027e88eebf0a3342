"""The flat list of settings that the fields of configuration groups declare: one entry for each flag."""

import dataclasses
import functools
import typing
from dataclasses import dataclass
from typing import Any

from vllm_engine.config.device import DeviceKind
from vllm_engine.config.option import Support


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """One setting: what its field declares, and where the configuration holds it.

    ``name`` is its keyword and YAML key (``attention_backend``), ``flag`` its flag, ``path`` the attributes that lead
    to its value from the configuration (``("attention", "backend")``), ``group`` the heading under which help lists it.
    """

    name: str
    flag: str
    path: tuple[str, ...]
    group: str
    hint: Any
    default: Any
    facts: typing.Mapping[str, Any]

    @property
    def help(self) -> str:
        """One line that says what it is for."""
        text: str = self.facts["help"]
        return text

    @property
    def short(self) -> tuple[str, ...]:
        """Its short flags, such as ``-tp``."""
        spellings: tuple[str, ...] = self.facts["short"]
        return spellings

    @property
    def keys(self) -> type[Any] | None:
        """The dataclass whose fields are the keys of a JSON setting, where these are known."""
        return self.hint if dataclasses.is_dataclass(self.hint) else None  # type: ignore[return-value]

    def support_on(self, device: DeviceKind) -> Support:
        """What this version does about it on a device."""
        if device == "cuda" and self.facts["cuda"] is not None:
            support: Support = self.facts["cuda"]
            return support
        return Support(self.facts["unsupported"], self.facts["possible"], self.facts["no_effect"])

    def value_in(self, config: Any) -> Any:
        """Its value in a configuration."""
        return functools.reduce(getattr, self.path, config)


def settings_of(config: type[Any]) -> dict[str, Setting]:
    """Every setting of a configuration dataclass by name: of its groups in their order, then its own."""
    return _settings_of(config)  # type: ignore[arg-type] # mypy does not see that a class is hashable


@functools.cache
def _settings_of(config: type[Any]) -> dict[str, Setting]:
    groups: list[Setting] = []
    own: list[Setting] = []
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            groups += [
                dataclasses.replace(setting, path=(field.name, *setting.path))
                for setting in settings_of(hint).values()  # type: ignore[arg-type]
            ]
        if field.metadata and not field.metadata.get("nested_only"):
            own.append(_setting(config, field, hint))
    found = {setting.name: setting for setting in (*groups, *own)}
    if len(found) != len(groups) + len(own):
        raise TypeError(f"{config.__name__} declares a setting twice")
    return found


def keys_of(group: type[Any]) -> dict[str, Setting]:
    """The fields of a group as keys of its JSON object, whether or not they have flags of their own."""
    hints = typing.get_type_hints(group, include_extras=True)
    return {field.name: _setting(group, field, hints[field.name]) for field in dataclasses.fields(group)}


def group_name(group: type[Any]) -> str:
    """The documented name of a configuration group."""
    name: str = getattr(group, "GROUP", group.__name__)
    return name


def group_summaries(config: type[Any]) -> dict[str, str]:
    """Name and one line for each group that has settings, in the order of ``settings_of``."""
    lines: dict[str, str] = {}
    for hint in typing.get_type_hints(config).values():
        if dataclasses.is_dataclass(hint):
            lines |= group_summaries(hint)  # type: ignore[arg-type]
    if any(field.metadata and not field.metadata.get("nested_only") for field in dataclasses.fields(config)):
        lines[group_name(config)] = (config.__doc__ or "").strip().splitlines()[0]
    return lines


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The declared default of a field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _setting(group: type[Any], field: dataclasses.Field[Any], hint: Any) -> Setting:
    flag = field.metadata["flag"] or "--" + field.name.replace("_", "-")
    return Setting(
        name=flag.removeprefix("--").replace("-", "_"),
        flag=flag,
        path=(field.name,),
        group=group_name(group),
        hint=hint,
        default=default_of(field),
        facts=field.metadata,
    )
