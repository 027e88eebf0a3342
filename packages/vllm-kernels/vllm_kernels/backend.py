"""Which face (implementation) serves an operation. The only place that decides it."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from vllm_kernels.cpu import native
from vllm_kernels.triton.device import why_not as why_not_triton

logger = logging.getLogger(__name__)

FACES = ("reference", "eager", "cpu", "triton")


class _Choice:
    """Faces chosen for some operations, with what was found out by them. One object for each choice that was ever made.

    A layer asks ``face_of`` for each of its operations: a lookup in ``served`` is all that it costs.
    """

    __slots__ = ("faces", "served")

    def __init__(self, faces: Mapping[str, str]) -> None:
        self.faces = faces
        self.served: dict[tuple[str, str | None, torch.device, str | None], ModuleType] = {}


_forced: str | None = None
_choices: dict[frozenset[tuple[str, str]], _Choice] = {}
_chosen: ContextVar[_Choice] = ContextVar("vllm_kernels_faces", default=_Choice({}))  # noqa: B039 (grows, as a cache)


def face_of(op: str, device: torch.device, function: str | None = None) -> ModuleType:
    """Module that implements the operations of file ``op`` (``"norm"``) for tensors on ``device``.

    The first of these that says something decides: ``use_face``, the environment variable ``VLLM_KERNELS_FACE`` (read
    once), ``choose_faces`` for the ``function`` alone or for its whole file, the device.

    Raises ``ValueError`` for a face that does not exist.
    """
    choice = _chosen.get()
    face = _forced or _from_environment()
    key = (op, function, device, face)  # not device.type: making that word costs more than all the rest
    module = choice.served.get(key)
    if module is None:
        face = face or choice.faces.get(f"{op}.{function}") or choice.faces.get(op) or _face_of_device(device)
        module = choice.served[key] = import_module(f"vllm_kernels.{face}.{op}")
    return module


@contextmanager
def use_face(face: str) -> Iterator[None]:
    """Serve every operation by one face inside the ``with`` block, in all threads. Raises ``ValueError`` if unknown."""
    global _forced
    before, _forced = _forced, _checked(face, "VLLM_KERNELS_FACE")
    try:
        yield
    finally:
        _forced = before


@contextmanager
def choose_faces(faces: Mapping[str, str]) -> Iterator[None]:
    """Serve some operations by other faces than the device's inside the ``with`` block, in this thread or task only.

    Args:
        faces: file of operations (``"attention"``), or one function of a file (``"norm.rms_norm"``) -> face. Blocks
            inside of one another add up, and the inner one wins.

    Raises:
        ValueError: for a face that does not exist.
    """
    if not faces:
        yield
        return
    checked = {**_chosen.get().faces, **{name: _checked(face, name) for name, face in faces.items()}}
    token = _chosen.set(_choices.setdefault(frozenset(checked.items()), _Choice(checked)))
    try:
        yield
    finally:
        _chosen.reset(token)


def _face_of_device(device: torch.device) -> str:
    if device.type == "cpu":
        return _cpu_face()
    return _gpu_face() if device.type == "cuda" else "reference"


@cache
def _cpu_face() -> str:
    """C++ where it can run, else torch's own operators."""
    reason = native.why_not()
    if reason is None:
        return "cpu"
    logger.warning("CPU operations are torch's own, several times slower than the native kernels: %s", reason)
    return "eager"


@cache
def _gpu_face() -> str:
    """Triton where it is installed, else the reference, which runs anywhere."""
    reason = why_not_triton(torch.device("cuda"))
    if reason is None:
        return "triton"
    logger.warning("GPU operations are those of the reference, which is slow: %s", reason)
    return "reference"


@cache
def _from_environment() -> str | None:
    face = os.environ.get("VLLM_KERNELS_FACE")
    return _checked(face, "VLLM_KERNELS_FACE") if face else None


def _checked(face: str, name: str) -> str:
    if face not in FACES:
        raise ValueError(f"{name} must be one of {', '.join(FACES)}, got {face!r}")
    reason = {"cpu": native.why_not, "triton": _why_not_triton_anywhere}.get(face, _nothing)()
    if reason:
        raise ValueError(f"{name}={face} cannot be honoured: {reason}")
    return face


def _why_not_triton_anywhere() -> str | None:
    return why_not_triton(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _nothing() -> None:
    """No reason against a face that runs anywhere."""
