"""Which kernels a worker computes with: told once at start, and refused where they cannot do what is asked."""

from collections.abc import Mapping

import torch

from vllm_engine import envs
from vllm_engine.errors import ConfigError
from vllm_engine.logging import get_logger
from vllm_kernels import batch_invariance, describe
from vllm_kernels.backend import choose_faces
from vllm_kernels.cpu import native

logger = get_logger(__name__)

_FACE = "VLLM_KERNELS_FACE"


def check_kernels(faces: Mapping[str, str], device: torch.device) -> None:
    """Say which operations have kernels of their own choice, before weights are read.

    Args:
        faces: operation -> kernels that the settings chose for it.
        device: that the operations run on.

    Raises:
        ConfigError: naming the variable, when the environment asks for kernels that this machine does not have, or for
            batch invariance of kernels that are not made for it.
    """
    try:
        serving = describe.kernels_of(device)
        invariant = batch_invariance.enabled()
        with choose_faces(faces):
            pass
    except ValueError as error:
        variables = (_FACE, native.VARIABLE, batch_invariance.VARIABLE)
        field = next((name for name in variables if str(error).startswith(name)), None)
        raise ConfigError(str(error), field=field) from error
    forced: str | None = envs.get(_FACE)
    if forced in ("cpu", "eager") and device.type != "cpu":  # eager samples with numpy
        raise ConfigError(f"{_FACE}={forced} cannot be honoured: these kernels are for a CPU", field=_FACE)
    for operation, face in faces.items():
        if forced in (None, face):
            logger.info("%s is computed by the %s kernels", operation, face)
        else:
            logger.warning("%s=%s wins: %s is not computed by the %s kernels", _FACE, forced, operation, face)
    if not invariant:
        return
    others = {} if forced is not None else {name: face for name, face in faces.items() if face != "cpu"}
    if others or not serving.startswith("native"):
        used = ", ".join(f"{name} by the {face} kernels" for name, face in others.items()) or serving
        raise ConfigError(
            f"{batch_invariance.VARIABLE}=1 takes the native kernels for all operations, and these are used: {used}",
            field=batch_invariance.VARIABLE,
        )
    logger.info("results are the same bits in any batch (%s=1)", batch_invariance.VARIABLE)


def tell_kernels(device: torch.device, hardware: str) -> None:
    """One line on what computes: kernels, and the hardware in words."""
    logger.info("kernels: %s, %s", describe.kernels_of(device), hardware)
