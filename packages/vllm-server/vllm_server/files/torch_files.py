"""The file that ``torch.save`` makes of one tensor, read as plain data.

It is a ZIP file: ``data.pkl`` describes the tensor in the language of pickle, ``data/<key>`` holds its values. That
language can call anything. Here nothing is unpickled: of its few dozen instructions the dozen is known that a plain
tensor needs, names stand for themselves, and the one call that builds a tensor is read as a description of it.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

from vllm_engine.frontend.prompt_embeds import check_shape, refusal
from vllm_engine.messages import EMBEDS_ITEM_BYTES, EmbedsDtype, PromptEmbeds
from vllm_server.files.zip_files import ZipFile

MAX_PICKLE_BYTES = 4096
"""What ``torch.save`` writes for a tensor has less than 300."""

_REBUILD = "torch._utils _rebuild_tensor_v2"
_HOOKS = "collections OrderedDict"
_STORAGES: dict[str, EmbedsDtype] = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
}
_KNOWN = {_REBUILD, _HOOKS, *_STORAGES}
_BUILD_ARGUMENTS = 6
_PUSHES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True, eq=False)
class _Name:
    """A name of a class or function; only a name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    dtype: EmbedsDtype
    key: str
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorDescription:
    """What ``data.pkl`` tells: values of ``dtype``, ``length`` of them in the entry ``key``. Counts are in values."""

    dtype: EmbedsDtype
    key: str
    length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _EmptyDict:
    """The hooks of a tensor: none."""


class _Mark:
    """Where a tuple begins."""


def read_torch_file(data: bytes, *, width: int, max_model_len: int, max_bytes: int) -> PromptEmbeds:
    """The tensor in a file of ``torch.save``.

    Args:
        data: the file.
        width: what the second dimension must be.
        max_model_len: most rows.
        max_bytes: most bytes of its values, and of the storage that they are in.

    Raises:
        InvalidRequest: for any other file.
    """
    try:
        archive = ZipFile(data)
        places = [name for name in archive.names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(places) != 1:
            raise ValueError("it is not of torch.save: there is no data.pkl")
        folder = places[0].removesuffix("data.pkl")
        tensor = describe(archive.read(places[0], limit=MAX_PICKLE_BYTES))
        shape = check_shape(tensor.shape, width, max_model_len)
        size = EMBEDS_ITEM_BYTES[tensor.dtype]
        if shape[0] * shape[1] * size > max_bytes:
            raise ValueError(f"the tensor has more than {max_bytes} bytes")
        if folder + "byteorder" in archive.names and archive.read(folder + "byteorder", limit=16) != b"little":
            raise ValueError("its values are not little-endian")
        storage = archive.read(f"{folder}data/{tensor.key}", limit=max_bytes)
        if len(storage) != tensor.length * size:
            raise ValueError("the storage has another length than it should")
    except ValueError as error:
        raise refusal(f"cannot be read: {error}") from None
    return PromptEmbeds(_gathered(storage, tensor, shape, size), shape, tensor.dtype)


def describe(pickle: bytes) -> TensorDescription:
    """What ``data.pkl`` says of a tensor. Raises ``ValueError`` for anything but one dense tensor with two dimensions,
    whose values all lie in its storage.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    end = 0
    for instruction, argument, position in pickletools.genops(pickle):
        end = (position or 0) + 1
        _follow(instruction.name, argument, stack, memo)
    if end != len(pickle) or len(stack) != 1 or not isinstance(stack[0], TensorDescription):
        raise ValueError("it does not hold one dense tensor and nothing else")
    return stack[0]


def _follow(instruction: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Carry out one instruction on a stack of plain values. Values are never compared: a tuple may be a deep maze."""
    if instruction in _PUSHES:
        stack.append(argument)
    elif instruction in ("NEWTRUE", "NEWFALSE"):
        stack.append(instruction == "NEWTRUE")
    elif instruction == "MARK":
        stack.append(_Mark())
    elif instruction == "TUPLE":
        places = [index for index, value in enumerate(stack) if isinstance(value, _Mark)]
        if not places:
            raise ValueError("its description is broken")
        stack[places[-1] :] = [tuple(stack[places[-1] + 1 :])]
    elif instruction in _TUPLES:
        stack.append(tuple(_taken(stack, _TUPLES[instruction])))
    elif instruction in ("BINPUT", "LONG_BINPUT"):
        (memo[argument],) = _taken(stack, 1)
        stack.append(memo[argument])
    elif instruction in ("BINGET", "LONG_BINGET"):
        if argument not in memo:
            raise ValueError("its description is broken")
        stack.append(memo[argument])
    elif instruction == "GLOBAL":
        if argument not in _KNOWN:
            raise ValueError(f"it needs {ascii(argument)[:100]}; only a plain dense float tensor can be read")
        stack.append(_Name(argument))
    elif instruction == "BINPERSID":
        stack.append(_storage(*_taken(stack, 1)))
    elif instruction == "REDUCE":
        stack.append(_called(*_taken(stack, 2)))
    elif instruction not in ("PROTO", "STOP"):
        raise ValueError(f"it has the pickle instruction {instruction}, which no plain tensor needs")


def _taken(stack: list[Any], count: int) -> list[Any]:
    """The last values of the stack, taken from it."""
    taken = stack[len(stack) - count :] if count else []
    if len(stack) < count or any(isinstance(value, _Mark) for value in taken):
        raise ValueError("its description is broken")
    del stack[len(stack) - count :]
    return taken


def _storage(value: Any) -> _Storage:
    match value:
        # The fourth says on which device the values were: nothing that matters here.
        case ("storage", _Name(name=name), str(key), str(), int(length)) if name in _STORAGES and length >= 0:
            return _Storage(_STORAGES[name], key, int(length))
    raise ValueError("it has a storage that is not of float32, float16 or bfloat16")


def _called(called: Any, arguments: Any) -> Any:
    match called, arguments:
        case _Name(name=name), () if name == _HOOKS:
            return _EmptyDict()
        case _Name(name=name), (_Storage(), int(), tuple(), tuple(), bool(), _EmptyDict()) if name == _REBUILD:
            return _tensor(*arguments[:-2])
    raise ValueError("it calls something else than what builds a plain dense tensor")


def _tensor(storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> TensorDescription:
    """A tensor whose values lie in its storage, whatever the numbers say."""
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise ValueError("the tensor has a size, stride or offset that is no number of at least 0")
    if len(shape) != len(strides) or len(shape) != 2 or not all(shape):
        raise ValueError("the tensor must have two dimensions, none of them empty")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.length:
        raise ValueError("the tensor reaches beyond its storage")
    return TensorDescription(storage.dtype, storage.key, storage.length, offset, shape, strides)


def _gathered(storage: bytes, tensor: TensorDescription, shape: tuple[int, int], size: int) -> bytes:
    """The values of a tensor, row after row: it may be a slice or a transpose of its storage."""
    import numpy as np

    rows, columns = shape
    if tensor.strides == (columns, 1):
        return storage[tensor.offset * size : (tensor.offset + rows * columns) * size]
    strides = (tensor.strides[0] * size, tensor.strides[1] * size)
    values = np.ndarray(shape, f"<u{size}", buffer=storage, offset=tensor.offset * size, strides=strides)
    return values.tobytes()
