"""Which files of a model folder hold its weights."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from vllm_engine.errors import ConfigError

Format = Literal["safetensors", "pt"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a format names its files: the index, the single file, any file, and files that hold something else."""

    index: str
    single: str
    any_file: tuple[str, ...]
    not_weights: tuple[str, ...]


_LAYOUTS: dict[Format, _Layout] = {
    "safetensors": _Layout(
        index="model.safetensors.index.json",
        single="model.safetensors",
        any_file=("*.safetensors",),
        not_weights=("consolidated*", "adapter_model*"),
    ),
    "pt": _Layout(
        index="pytorch_model.bin.index.json",
        single="pytorch_model.bin",
        any_file=("*.bin", "*.pt"),
        not_weights=("consolidated*", "adapter_model*", "training_args*", "optimizer*", "scheduler*", "rng_state*"),
    ),
}


def find_weight_files(
    folder: Path, load_format: str, ignore_patterns: Collection[str] = ()
) -> tuple[Format, list[Path]]:
    """The weight files of a folder and their format, in the order of their names.

    An index file decides which shards belong to the model; without one it is the file with the usual name, or all
    files of the format.

    Args:
        folder: the model's folder.
        load_format: ``safetensors`` or ``pt`` for one format, ``auto`` or ``hf`` for safetensors first, then PyTorch.

        ignore_patterns: files to leave out, as if they were not there.

    Raises:
        ConfigError: no such file, a broken index, or an index that names a file which is missing or not in the folder.
    """
    formats: list[Format] = ["safetensors", "pt"]
    if load_format in ("safetensors", "pt"):
        formats = [name for name in formats if name == load_format]
    for name in formats:
        files = [file for file in _find(folder, _LAYOUTS[name], ignore_patterns) if not _any(file, ignore_patterns)]
        if files:
            return name, files
    patterns = " or ".join(pattern for name in formats for pattern in _LAYOUTS[name].any_file)
    if any(_find(folder, _LAYOUTS[name], ()) for name in formats):
        raise ConfigError(
            f"{folder} has no weight files ({patterns}) beside those that ignore_patterns leaves out: "
            f"{', '.join(ignore_patterns)}",
            field="ignore_patterns",
        )
    raise ConfigError(f"{folder} has no weight files ({patterns}) for load_format={load_format}", field="load_format")


def _find(folder: Path, layout: _Layout, ignore_patterns: Collection[str]) -> list[Path]:
    index, single = folder / layout.index, folder / layout.single
    if index.is_file() and not _any(index, ignore_patterns):
        return _shards(index)
    if single.is_file() and not _any(single, ignore_patterns):
        return [single]
    return sorted(
        path
        for pattern in layout.any_file
        for path in folder.glob(pattern)
        if path.is_file() and not _any(path, layout.not_weights)
    )


def _any(file: Path, patterns: Collection[str]) -> bool:
    """Whether a file of the model's folder fits one of the patterns, as files of a repository on the hub do."""
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _shards(index: Path) -> list[Path]:
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {index}: {error}", field="model") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConfigError(f"{index}: weight_map must map names of tensors to names of files", field="model")
    names = sorted(set(weight_map.values()))
    for name in names:
        # The index comes with the model: it must not make us read elsewhere.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ConfigError(f"{index}: {name!r} is not a file in the model's folder", field="model")
        if not (index.parent / name).is_file():
            raise ConfigError(f"{index} names {name}, which is missing", field="model")
    return [index.parent / name for name in names]
