"""Prompts as embeddings in a request: base64 of a file with one tensor, as safetensors, .npy or of ``torch.save``."""

import base64
import binascii
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from vllm_engine.frontend.prompt_embeds import check_shape, refusal
from vllm_engine.messages import EMBEDS_ITEM_BYTES, EmbedsDtype, PromptEmbeds
from vllm_server.files.torch_files import read_torch_file
from vllm_server.json_body import MAX_BODY_BYTES

MAX_HEADER_BYTES = 64 * 2**10
"""What a file may have beside the values of its tensor."""
MAX_NPY_HEADER_BYTES = 1024
MAX_ALL_BYTES = MAX_BODY_BYTES
"""Values of all tensors of one request: unpacked, they may not be more than what could be sent without packing."""

_LARGEST_ITEM = max(EMBEDS_ITEM_BYTES.values())
_SAFETENSORS_DTYPES: dict[Any, EmbedsDtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NPY_DTYPES: dict[str, EmbedsDtype] = {"<f4": "float32", "<f2": "float16"}
_NPY_SHAPE = r"(?:[0-9]{1,18}(?:, ?[0-9]{1,18}){0,7})?,?"
_NPY_ITEM = (
    r"'descr': *'(?P<descr>[^']{1,8})'"
    r"|'fortran_order': *(?P<fortran>True|False)"
    rf"|'shape': *\((?P<shape>{_NPY_SHAPE})\)"
)
_NPY_HEADER = re.compile(r"\{ *(?:X)(?: *, *(?:X)){2} *,? *\} *\n?".replace("X", re.sub(r"\?P<\w+>", "?:", _NPY_ITEM)))


def decode_embeds(texts: Sequence[str], *, width: int, max_model_len: int) -> list[PromptEmbeds]:
    """The tensors of a request, one for each text. No more is decoded than what a prompt of the model can have.

    Args:
        texts: base64.
        width: values of a row of the model.
        max_model_len: most rows of each.

    Raises:
        InvalidRequest: field ``prompt_embeds``, for anything that is not a dense float tensor of that width.
    """
    left = MAX_ALL_BYTES
    found = []
    for text in texts:
        max_bytes = min(left, max_model_len * width * _LARGEST_ITEM)
        tensor = read_tensor(_decoded(text, max_bytes), width=width, max_model_len=max_model_len, max_bytes=max_bytes)
        left -= len(tensor.data)
        found.append(tensor)
    return found


def read_tensor(data: bytes, *, width: int, max_model_len: int, max_bytes: int) -> PromptEmbeds:
    """The one tensor of a file in any of the three formats. ``max_bytes``: most bytes of its values.

    Raises:
        InvalidRequest: field ``prompt_embeds``.
    """
    if data.startswith(b"PK\3\4"):
        return read_torch_file(data, width=width, max_model_len=max_model_len, max_bytes=max_bytes)
    if data.startswith(b"\x93NUMPY"):
        return _read_npy(data, width, max_model_len)
    if data[8:9] == b"{":
        return _read_safetensors(data, width, max_model_len)
    raise refusal("must be the file of one tensor: safetensors, .npy, or what torch.save writes")


def _decoded(text: str, max_bytes: int) -> bytes:
    if len(text) > (max_bytes + MAX_HEADER_BYTES) * 4 // 3 + 4:
        raise refusal(f"is too large: a tensor may have at most {max_bytes} bytes here, and its file little more")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refusal("must be base64") from None


def _read_safetensors(data: bytes, width: int, max_model_len: int) -> PromptEmbeds:
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise refusal("cannot be read: the header of the safetensors file is too long")
    try:
        header = msgspec.json.decode(data[8 : 8 + length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise refusal("cannot be read: the header of the safetensors file is not JSON") from None
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    if len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise refusal("must be a safetensors file with exactly one tensor")
    tensor = tensors[0]
    dtype = _SAFETENSORS_DTYPES.get(tensor.get("dtype")) if isinstance(tensor.get("dtype"), str) else None
    if dtype is None:
        raise refusal("must be of type F32, F16 or BF16 in the safetensors file")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise refusal("cannot be read: the tensor of the safetensors file has no shape")
    values = data[8 + length :]
    if tensor.get("data_offsets") != [0, len(values)]:
        raise refusal("cannot be read: the tensor of the safetensors file is not the rest of it")
    return _checked(values, check_shape(shape, width, max_model_len), dtype)


def _read_npy(data: bytes, width: int, max_model_len: int) -> PromptEmbeds:
    size = 2 if data[6:7] == b"\1" else 4
    begin = 8 + size
    end = begin + int.from_bytes(data[8:begin], "little")
    if data[6:8] not in (b"\1\0", b"\2\0", b"\3\0") or end > min(len(data), MAX_NPY_HEADER_BYTES):
        raise refusal("cannot be read: the .npy file has no header that is known")
    header = data[begin:end].decode("latin-1")
    items = {match.lastgroup: match[match.lastgroup or 0] for match in re.finditer(_NPY_ITEM, header)}
    if _NPY_HEADER.fullmatch(header) is None or len(items) != 3:
        raise refusal("cannot be read: the header of the .npy file is not one of a plain array")
    dtype = _NPY_DTYPES.get(items["descr"])
    if dtype is None:
        raise refusal(f"must be of type <f4 or <f2 in the .npy file, got {items['descr']!a}")
    shape = check_shape([int(size) for size in items["shape"].split(",") if size], width, max_model_len)
    values = data[end:]
    if items["fortran"] == "True" and len(values) == math.prod(shape) * EMBEDS_ITEM_BYTES[dtype]:
        import numpy as np

        values = np.frombuffer(values, items["descr"]).reshape(shape, order="F").tobytes()
    return _checked(values, shape, dtype)


def _checked(values: bytes, shape: tuple[int, int], dtype: EmbedsDtype) -> PromptEmbeds:
    if len(values) != math.prod(shape) * EMBEDS_ITEM_BYTES[dtype]:
        raise refusal(f"has {len(values)} bytes of values, which is not what its shape says")
    return PromptEmbeds(values, shape, dtype)
