"""The worker as the settings want it: ours or a subclass, with the methods of an extension if one is named."""

from pathlib import Path

from vllm_engine.config import EngineConfig
from vllm_engine.config.import_path import load_class
from vllm_engine.errors import ConfigError
from vllm_engine.execution.worker import Worker


def make_worker(config: EngineConfig, model_path: Path) -> Worker:
    """A worker that has not loaded its model yet.

    Raises:
        ConfigError: for what the worker itself refuses; naming ``worker_cls`` or ``worker_extension_cls`` when the path
            leads to no such class, or when the extension has a name that the worker has, too.
    """
    settings = config.parallel
    worker_class = Worker if settings.worker_cls == "auto" else load_class("worker_cls", settings.worker_cls, Worker)
    if not settings.worker_extension_cls:
        return worker_class(config, model_path)
    path = settings.worker_extension_cls
    extension: type[object] = load_class("worker_extension_cls", path, object)
    added = _names_of(extension)
    _refuse_clash(path, added, set(dir(worker_class)))
    try:
        joined: type[Worker] = type(worker_class.__name__, (worker_class, extension), {})
    except TypeError as error:  # another metaclass, or instances of another layout
        raise ConfigError(
            f"worker_extension_cls: {path} cannot be joined with the worker: {error}", field="worker_extension_cls"
        ) from error
    worker = joined(config, model_path)
    _refuse_clash(path, added, set(vars(worker)))  # a worker gives itself some names only when it is made
    return worker


def _names_of(extension: type[object]) -> list[str]:
    """The names that an extension and its own bases define, but for those that Python gives every class."""
    names = [name for base in extension.__mro__ if base is not object for name in vars(base)]
    return [name for name in names if name in ("__init__", "__new__") or not name.startswith("__")]


def _refuse_clash(path: str, added: list[str], taken: set[str]) -> None:
    for name in added:
        if name in taken:
            raise ConfigError(
                f"worker_extension_cls: {path} defines {name}, which the worker has already: an extension only adds "
                "to the worker; worker_cls replaces it",
                field="worker_extension_cls",
            )
