"""Reading tensors out of weight files, one at a time, without running anything that stands in them."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from vllm_engine.config.lfs_pointer import refuse_pointer
from vllm_engine.errors import ConfigError
from vllm_engine.loading.stored_tensor import StoredTensor
from vllm_engine.loading.weight_files import Format


def read_tensors(file: Path, file_format: Format, *, eager: bool = False) -> Iterator[StoredTensor]:
    """The tensors of one weight file, memory-mapped where the format allows.

    With ``eager``, a safetensors file is first read as a whole.

    Raises:
        ConfigError: the file cannot be read, is damaged or a pointer to another, or holds something other than named
            dense tensors.
    """
    # The libraries say of a file without permission that it is not there.
    try:
        refuse_pointer(file, "model")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", field="model") from error
    return _read_safetensors(file, eager) if file_format == "safetensors" else _read_torch(file)


def _read_safetensors(file: Path, eager: bool) -> Iterator[StoredTensor]:
    try:
        if eager:
            yield from (StoredTensor(name, tensor, False) for name, tensor in load(file.read_bytes()).items())
            return
        with safe_open(file, framework="pt", device="cpu") as handle:
            for name in handle.keys():  # noqa: SIM118 - a handle is not iterable
                yield StoredTensor(name, handle.get_tensor(name), True)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} is damaged or no safetensors file: {error}", field="model") from error


def _read_torch(file: Path) -> Iterator[StoredTensor]:
    mapped = zipfile.is_zipfile(file)
    try:
        # weights_only refuses every pickled object that is no tensor or plain container.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise ConfigError(
            f"{file} was refused: it is damaged, or holds Python objects other than tensors, which could run code; "
            "safetensors files cannot",
            field="model",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise ConfigError(f"{file} is damaged or no PyTorch file: {error}", field="model") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a dictionary of tensors, got {type(content).__name__}", field="model")
    for name, tensor in content.items():
        # A sparse tensor with indices out of bounds would corrupt memory when made dense.
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise ConfigError(f"{file}: entry {name!r} is not a dense tensor", field="model")
        yield StoredTensor(name, tensor, mapped)
