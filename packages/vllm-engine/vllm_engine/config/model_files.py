"""Where a model's files are: the built-in demo, a folder, or a snapshot from the hub."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_engine.config.groups import EngineConfig
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger

logger = get_logger(__name__)

DEMO = "demo"
_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
_SAFETENSORS = ["*.safetensors"]
_PYTORCH = ["*.bin", "*.pt"]
_WEIGHTS = {"safetensors": [_SAFETENSORS], "pt": [_PYTORCH], "dummy": []}
_NEVER = ["*/*", "consolidated*", "adapter_model*", "training_args*", "optimizer*", "scheduler*", "rng_state*"]
"""Files of a repository in subfolders (other formats of the same model), beside the weights, or of a training run."""


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    ignore_patterns: Sequence[str] = (),
    token: str | bool | None = None,
    load_format: str = "auto",
    setting: str = "model",
) -> Path:
    """The folder with the files of a model.

    ``demo`` is the model that comes with the package. An existing folder is taken as it is. Anything else is a
    repository on the hub, ``owner/name``: its small files and its weights in one format (safetensors where there are
    any) are fetched into the hub's cache, or taken from there.

    Args:
        name: as above.
        revision: branch, tag or commit on the hub.
        download_dir: cache folder instead of the hub's own.
        ignore_patterns: files of the repository to leave out.
        token: access token for the hub; true takes the stored one.
        load_format: as of ``LoadConfig``: which weights to fetch; none at all for ``dummy``.
        setting: where the name comes from, for errors.

    Raises:
        ConfigError: no such folder, or the model could not be fetched.
    """
    if name == DEMO:
        return Path(__file__).resolve().parents[1] / DEMO
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        if revision is not None:
            logger.warning("revision %s has no effect: %s %s is a folder", revision, setting, name)
        return folder
    if folder.is_file():
        raise ConfigError(f"{setting} {name} is a file, not the folder of a model", field=setting)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"{setting} folder {name} does not exist", field=setting)
    return _fetch(
        name,
        setting,
        weights=_WEIGHTS.get(load_format, [_SAFETENSORS, _PYTORCH]),
        ignore=[*ignore_patterns, *_NEVER],
        revision=revision,
        cache_dir=download_dir,
        token=token,
    )


def config_folder(config: EngineConfig, model_path: Path) -> Path:
    """The folder with the ``config.json`` to use: ``hf_config_path``, or the model's.

    Raises:
        ConfigError: when it cannot be had.
    """
    name = config.model.hf_config_path
    if name is None:
        return model_path
    folder = resolve_model(
        name,
        download_dir=config.load.download_dir,
        token=config.model.hf_token,
        load_format="dummy",  # no weights
        setting="hf_config_path",
    )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"hf_config_path {name} has no config.json", field="hf_config_path")
    return folder


def _fetch(name: str, setting: str, *, weights: list[list[str]], ignore: list[str], **where: Any) -> Path:
    # Imported here: only a model from the hub needs it, and it takes a third of a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def snapshot(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignore, **where))

    try:
        folder = snapshot(_SMALL_FILES)
        for patterns in weights:
            folder = snapshot(patterns)
            if any(path.is_file() for pattern in patterns for path in folder.glob(pattern)):
                break
    except HFValidationError as error:
        raise ConfigError(
            f"{setting} {name!r} is neither a folder nor a name on the hub: {error}", field=setting
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{setting} {name} could not be fetched from the hub ({type(error).__name__}: {reason[0]}). "
            "A folder on this machine works without network, and so does the built-in model: demo",
            field=setting,
        ) from error
    return folder
