"""Which face (implementation) serves an operation. The only place that decides it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

FACES = ("reference", "cpu")
_BY_DEVICE = {"cpu": "cpu"}  # any other device: reference, which is plain torch and runs everywhere

_forced: str | None = None


def face_of(op: str, device: torch.device) -> ModuleType:
    """Module that implements the operations of file ``op`` (``"norm"``) for tensors on ``device``.

    The environment variable ``VLLM_KERNELS_FACE`` (read once) or ``use_face`` overrides the choice by device.
    Raises ``ValueError`` for a face that does not exist.
    """
    return _load(_forced or _from_environment() or _BY_DEVICE.get(device.type, "reference"), op)


@contextmanager
def use_face(face: str) -> Iterator[None]:
    """Serve every operation by one face inside the ``with`` block, in all threads. Raises ``ValueError`` if unknown."""
    global _forced
    before, _forced = _forced, _checked(face)
    try:
        yield
    finally:
        _forced = before


@cache
def _from_environment() -> str | None:
    face = os.environ.get("VLLM_KERNELS_FACE")
    return _checked(face) if face else None


@cache
def _load(face: str, op: str) -> ModuleType:
    return import_module(f"vllm_kernels.{face}.{op}")


def _checked(face: str) -> str:
    if face not in FACES:
        raise ValueError(f"VLLM_KERNELS_FACE must be one of {', '.join(FACES)}, got {face!r}")
    return face
