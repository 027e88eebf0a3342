"""Prompts given as embeddings: checked, and brought to the model's own data type.

A row stands in for the output of the model's token embedding (what ``get_input_embeddings()`` of ``transformers``
returns, the scale of families that have one included). Torch is never imported here: who gives a tensor has done so.
"""

import hashlib
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm_engine.errors import InvalidRequest, shown
from vllm_engine.messages import EMBEDS_ITEM_BYTES, EmbedsDtype, EmbedsSpec, PromptEmbeds

if TYPE_CHECKING:
    import numpy as np
    import torch

FIELD = "prompt_embeds"
# The types in which values are held here: numpy has no bfloat16, so that is its bits.
_HELD = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
_BFLOAT16_EXPONENT = 0x7F80  # all ones: infinite or no number


def refusal(message: str) -> InvalidRequest:
    """An error that names the field."""
    return InvalidRequest(f"prompt_embeds {message}", field=FIELD)


def check_enabled(spec: EmbedsSpec | None) -> EmbedsSpec:
    """What the model takes, from ``EngineReady``. Raises ``InvalidRequest`` where it takes no embeddings."""
    if spec is None:
        raise refusal("are not enabled: start the engine with --enable-prompt-embeds (enable_prompt_embeds=True)")
    return spec


def check_shape(shape: Sequence[int], width: int, max_model_len: int) -> tuple[int, int]:
    """A shape of some tokens times the width of the model. Raises ``InvalidRequest`` for any other."""
    if len(shape) != 2:
        raise refusal(f"must have 2 dimensions, [tokens, {width}], got {len(shape)}")
    rows, columns = (int(size) for size in shape)
    if columns != width:
        raise refusal(f"must have the model's hidden size {width} as its second dimension, got {columns}")
    if not 1 <= rows <= max_model_len:
        raise refusal(f"must have 1 to {max_model_len} tokens, got {rows}")
    return rows, columns


def read_prompt_embeds(value: Any, spec: EmbedsSpec, *, max_model_len: int, keep: int | None = None) -> PromptEmbeds:
    """Embeddings of a prompt in the model's data type, with their digest.

    Args:
        value: a dense tensor or numpy array [tokens, width] of float16, bfloat16 or float32 in the memory of the CPU,
            or what was read of a file.
        spec: what the model takes.
        max_model_len: most rows.
        keep: only so many last rows, if there are more.

    Raises:
        InvalidRequest: for anything else, and for values that are not finite, before or after the conversion.
    """
    values, dtype = _values(value, spec.width, max_model_len)
    if keep is not None:
        values = values[-keep:]
    _check_finite(values, dtype, "has a value that is not finite")
    if dtype != spec.dtype:
        values = _converted(values, dtype, spec.dtype)
        _check_finite(values, spec.dtype, f"has a value that is too large for the model's {spec.dtype}")
    data = values.tobytes()
    rows, columns = values.shape
    return PromptEmbeds(data, (rows, columns), spec.dtype, hashlib.sha256(data).hexdigest())


def _values(value: Any, width: int, max_model_len: int) -> "tuple[np.ndarray, EmbedsDtype]":
    """The values as held here, with the name of their type."""
    if isinstance(value, PromptEmbeds):
        return _of_bytes(value, width, max_model_len)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_tensor(value, width, max_model_len)
    import numpy as np

    if isinstance(value, np.ndarray):
        check_shape(value.shape, width, max_model_len)
        dtype = _known_dtype(value.dtype.name)
        if dtype == "bfloat16":  # of a package that adds it to numpy
            return np.ascontiguousarray(value).view("<u2"), dtype
        return np.ascontiguousarray(value, dtype=_HELD[dtype]), dtype
    raise refusal(f"must be a torch tensor or a numpy array, got {shown(value)}")


def _of_bytes(value: PromptEmbeds, width: int, max_model_len: int) -> "tuple[np.ndarray, EmbedsDtype]":
    import numpy as np

    check_shape(value.shape, width, max_model_len)
    dtype = _known_dtype(value.dtype)
    if len(value.data) != math.prod(value.shape) * EMBEDS_ITEM_BYTES[dtype]:
        raise refusal(f"has {len(value.data)} bytes, which is not what its shape says")
    return np.frombuffer(value.data, _HELD[dtype]).reshape(value.shape), dtype


def _of_tensor(tensor: "torch.Tensor", width: int, max_model_len: int) -> "tuple[np.ndarray, EmbedsDtype]":
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise refusal(f"must be a plain tensor, got {shown(tensor)}")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        raise refusal("must be a dense tensor, not a sparse, nested or quantised one")
    if tensor.device.type != "cpu":
        raise refusal(f"must be in the memory of the CPU, got a tensor on {tensor.device.type}")
    check_shape(tensor.shape, width, max_model_len)
    dtype = _known_dtype(str(tensor.dtype).removeprefix("torch."))
    plain = tensor.detach().resolve_neg().contiguous()
    values = plain.view(torch.int16 if dtype == "bfloat16" else tensor.dtype).numpy()
    return values.view(_HELD[dtype]), dtype


def _known_dtype(name: str) -> EmbedsDtype:
    if name in ("float16", "bfloat16", "float32"):
        return name  # type: ignore[return-value] # mypy does not narrow a text to literals
    raise refusal(f"must be of type float16, bfloat16 or float32, got {name}")


def _check_finite(values: "np.ndarray", dtype: EmbedsDtype, problem: str) -> None:
    """Raises ``InvalidRequest`` with ``problem`` when a value is infinite or no number."""
    import numpy as np

    if dtype == "bfloat16":
        exponent = np.uint16(_BFLOAT16_EXPONENT)
        finite = ((values & exponent) != exponent).all()
    else:
        finite = np.isfinite(values).all()
    if not finite:
        raise refusal(problem)


def _converted(values: "np.ndarray", dtype: EmbedsDtype, wanted: EmbedsDtype) -> "np.ndarray":
    """Finite values in another type, rounded to the nearest, ties to even; infinite where they are too large for it."""
    import numpy as np

    single = (values.astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else values.astype("<f4", copy=False)
    if wanted == "bfloat16":
        bits = single.view("<u4")
        # Half of the last place that stays, and one more where that place is odd.
        return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        return single.astype(_HELD[wanted], copy=False)
