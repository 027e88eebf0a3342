"""What a setting names by its import path: ``package.module:Class`` or ``package.module.Class``."""

import functools
import importlib
import inspect
import re
import sys
from types import ModuleType
from typing import TypeVar

from vllm_engine.errors import ConfigError

T = TypeVar("T")

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")


def load_class(setting_name: str, path: str, base: type[T]) -> type[T]:
    """The class at ``path``. Importing runs the module's own code; whatever goes wrong there is the setting's error.

    Args:
        setting_name: the setting to blame, such as ``scheduler_cls``.
        path: ``module:Class``; the part after the colon may have dots. Without a colon, the last dot separates.
        base: what the class must be a subclass of, with nothing abstract left.

    Raises:
        ConfigError: no such path, module or attribute; the module cannot be imported; or it is no such class.
    """
    return check_class(setting_name, path, load_object(setting_name, path), base)


def load_object(setting_name: str, path: str) -> object:
    """Whatever stands at ``path``.

    Raises:
        ConfigError: no such path, module or attribute; or the module cannot be imported.
    """
    module_name, names = _split(setting_name, path)
    found: object = _import(setting_name, path, module_name)
    try:
        found = functools.reduce(getattr, names.split("."), found)
    except AttributeError as error:
        why = " (an engine process has another main program: put it into a module)" if module_name == "__main__" else ""
        raise ConfigError(f"{setting_name}: module {module_name} has no {names}{why}", field=setting_name) from error
    return found


def check_class(setting_name: str, name: str, found: object, base: type[T]) -> type[T]:
    """``found``, if it is a class made from ``base``, complete and callable; ``name`` stands for it in the error.

    Raises:
        ConfigError: anything else.
    """
    wanted = f"a class derived from {base.__module__}.{base.__qualname__}"
    if not isinstance(found, type):
        raise ConfigError(
            f"{setting_name}: {name} must be {wanted}, not a value of type {type(found).__name__}", field=setting_name
        )
    if not issubclass(found, base):
        raise ConfigError(f"{setting_name}: {name} must be {wanted}", field=setting_name)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{setting_name}: {name} must define {missing}", field=setting_name)
    return found


def paths_of(setting_name: str, value: object) -> object:
    """``value`` with each class that it is, or has as an item, replaced by its import path.

    Raises:
        ConfigError: for a class that is not found at its own path, such as one made inside a function.
    """
    if isinstance(value, (list, tuple)):
        return [paths_of(setting_name, item) if isinstance(item, type) else item for item in value]
    if not isinstance(value, type):
        return value
    path = f"{value.__module__}:{value.__qualname__}"
    try:
        found: object = functools.reduce(getattr, value.__qualname__.split("."), sys.modules.get(value.__module__))
    except AttributeError:
        found = None
    if found is not value:
        raise ConfigError(f"{setting_name}: {path} must be at the top level of a module", field=setting_name)
    return path


def _split(setting_name: str, path: str) -> tuple[str, str]:
    """Module and attributes."""
    if _PATH.fullmatch(path):
        module_name, separator, names = path.partition(":")
        if not separator:
            module_name, separator, names = path.rpartition(".")
        if separator:
            return module_name, names
    raise ConfigError(
        f"{setting_name} must be an import path such as package.module:Class, got {path[:200]!r}", field=setting_name
    )


def _import(setting_name: str, path: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module itself, or one that it needs: only the first is a wrong path.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{setting_name}: {path} cannot be found: there is no module {error.name} "
                "(it must be installed, or its folder in PYTHONPATH)",
                field=setting_name,
            ) from error
        raise _failed(setting_name, path, module_name, error) from error
    except (Exception, SystemExit) as error:  # a module's own code can do anything
        raise _failed(setting_name, path, module_name, error) from error


def _failed(setting_name: str, path: str, module_name: str, error: BaseException) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(
        f"{setting_name}: {path} cannot be imported: module {module_name} raised {type(error).__name__}: {reason}",
        field=setting_name,
    )
