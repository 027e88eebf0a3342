"""Pointers of Git LFS: a repository that was cloned without it has a few lines of text where large files should be."""

from pathlib import Path

from vllm_engine.errors import ConfigError

_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path, setting: str) -> None:
    """To be asked of a file that is about to be read: others of a folder may well have stayed pointers.

    Raises:
        ConfigError: it is one, and the error is about ``setting``.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            message = f"{path} is not the file itself but a pointer to it: run `git lfs pull` in its folder"
            raise ConfigError(message, field=setting)
