"""Files with one tensor: the three formats as their own libraries write them, and a thousand files that are broken."""

import base64
import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from vllm_engine.errors import InvalidRequest
from vllm_engine.messages import PromptEmbeds
from vllm_server.files.tensor_files import MAX_ALL_BYTES, decode_embeds, read_tensor
from vllm_server.files.torch_files import describe

WIDTH, ROWS, MAX_LEN = 6, 4, 32
MAX_BYTES = MAX_LEN * WIDTH * 4
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def read(data: bytes, max_bytes: int = MAX_BYTES) -> PromptEmbeds:
    return read_tensor(data, width=WIDTH, max_model_len=MAX_LEN, max_bytes=max_bytes)


def refused(data: bytes, max_bytes: int = MAX_BYTES) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(data, max_bytes)
    assert caught.value.field == "prompt_embeds"
    assert len(str(caught.value)) < 400
    return str(caught.value)


def rows(dtype: torch.dtype = torch.float32, count: int = ROWS) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count)).to(dtype)


def of_torch(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def of_numpy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=True)
    return buffer.getvalue()


def of_safetensors(tensor: torch.Tensor) -> bytes:
    return save_safetensors({"any name": tensor}, {"made by": "a test"})


def is_same(found: PromptEmbeds, tensor: torch.Tensor) -> bool:
    plain = tensor.detach().contiguous()
    expected = plain.view(torch.uint8).numpy().tobytes()
    return (found.data, found.shape, "torch." + found.dtype) == (expected, tuple(tensor.shape), str(tensor.dtype))


# ---- what is good ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors(dtype: torch.dtype) -> None:
    assert is_same(read(of_safetensors(rows(dtype))), rows(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_npy(dtype: torch.dtype) -> None:
    array = rows(dtype).numpy()
    for form in (array, np.asfortranarray(array)):
        for version in (None, (1, 0), (2, 0), (3, 0)):
            assert is_same(read(of_numpy(form, version)), rows(dtype))
    # Writers other than numpy order and space the header as they like.
    for header in (
        "{'shape':(4, 6),'fortran_order':False,'descr':'%s'}",
        "{'descr': '%s', 'shape': (4,6,), 'fortran_order': False, }\n",
    ):
        text = (header % array.dtype.str).encode()
        file = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + array.tobytes()
        assert is_same(read(file), rows(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_save(dtype: torch.dtype) -> None:
    plain, long = rows(dtype), rows(dtype, 20)
    forms = [
        plain,
        plain.clone().requires_grad_(),
        (plain.clone().requires_grad_() * 1),
        plain.t().contiguous().t(),
        long[3:9],
        long[::3],
        torch.cat([long[:8], long[8:16]], dim=1)[:, 2 : 2 + WIDTH],
        plain[:1].expand(5, WIDTH),
        plain[:, :1].expand(ROWS, WIDTH),
        rows(dtype, 1),
        rows(dtype, MAX_LEN),
    ]
    for form in forms:
        assert is_same(read(of_torch(form)), form)


def test_torch_save_to_a_file_of_any_name_and_packed_anew(tmp_path: Any) -> None:
    torch.save(rows(), tmp_path / "my prompt.v2.pt")
    data = (tmp_path / "my prompt.v2.pt").read_bytes()
    assert is_same(read(data), rows())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert is_same(read(repacked(data, method=method)), rows())


def test_several_tensors_come_in_their_order() -> None:
    files = [of_torch(rows(count=2)), of_safetensors(rows(count=3)), of_numpy(rows(count=5).numpy())]
    texts = [base64.b64encode(file).decode() for file in files]
    assert [item.shape[0] for item in decode_embeds(texts, width=WIDTH, max_model_len=MAX_LEN)] == [2, 3, 5]


def test_nothing_of_this_needs_torch() -> None:
    code = (
        "import sys\n"
        "from vllm_server.files.tensor_files import read_tensor\n"
        "for text in sys.argv[1:]:\n"
        f"    read_tensor(bytes.fromhex(text), width={WIDTH}, max_model_len={MAX_LEN}, max_bytes={MAX_BYTES})\n"
        "print('torch' in sys.modules)"
    )
    files = [file.hex() for file in SEEDS]
    result = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


# ---- what is not ----


def repacked(
    data: bytes, *, method: int = zipfile.ZIP_STORED, change: Callable[[str, bytes], bytes | None] | None = None
) -> bytes:
    """The ZIP file with the content of its entries changed; None leaves one out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for name in source.namelist():
            content = source.read(name)
            content = content if change is None else change(name, content)  # type: ignore[assignment]
            if content is not None:
                target.writestr(name, content)
    return buffer.getvalue()


class Evil:
    def __reduce__(self) -> Any:
        return os.abort, ()  # whoever calls this does not live to tell


with warnings.catch_warnings(action="ignore"):  # torch's, of what is new or old there
    BAD_TORCH: dict[str, Any] = {
        "float64": rows(torch.float64),
        "int": torch.zeros(ROWS, WIDTH, dtype=torch.int64),
        "bool": torch.zeros(ROWS, WIDTH, dtype=torch.bool),
        "complex": torch.zeros(ROWS, WIDTH, dtype=torch.complex64),
        "float8": rows().to(torch.float8_e5m2),
        "sparse": rows().to_sparse(),
        "sparse rows": rows().to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(rows(), 0.1, 0, torch.qint8),
        "parameter": torch.nn.Parameter(rows()),
        "nested": torch.nested.nested_tensor([rows()[0], rows()[1]]),
        "meta": torch.zeros(ROWS, WIDTH, device="meta"),
        "dict": {"prompt_embeds": rows()},
        "list": [rows()],
        "two": (rows(), rows()),
        "ordered": OrderedDict(),
        "number": 5,
        "storage": rows().untyped_storage(),
        "module": torch.nn.Linear(3, 3),
        "evil": Evil(),
        "evil inside": {"x": Evil()},
        "conjugate": torch.view_as_complex(rows().view(ROWS, 3, 2)).conj().imag,
        "one dimension": torch.zeros(WIDTH),
        "three dimensions": torch.zeros(1, ROWS, WIDTH),
        "no dimension": torch.tensor(1.0),
        "wide": torch.zeros(ROWS, WIDTH + 1),
        "empty": torch.zeros(0, WIDTH),
        "long": torch.zeros(MAX_LEN + 1, WIDTH),
        "very long": torch.zeros(1, WIDTH).expand(10**12, WIDTH),
        "large storage": torch.zeros(MAX_LEN * 4, WIDTH)[:ROWS],
    }


@pytest.mark.parametrize("what", BAD_TORCH)
def test_anything_but_a_plain_dense_tensor_of_torch_is_refused(what: str) -> None:
    refused(of_torch(BAD_TORCH[what]))


def test_other_protocols_and_the_old_format_of_torch_are_refused() -> None:
    refused(of_torch(rows(), _use_new_zipfile_serialization=False))
    refused(of_torch(rows(), pickle_protocol=5))


# One tensor as torch.save describes it, in pieces, so that each can be another one.
def pickled(
    *,
    rebuild: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
    storage: bytes = b"ctorch\nFloatStorage\n",
    key: bytes = b"X\1\0\0\0000",
    length: bytes = b"K\x18",
    offset: bytes = b"K\0",
    shape: bytes = b"K\4K\6\x86",
    strides: bytes = b"K\6K\1\x86",
    gradient: bytes = b"\x89",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
    more: bytes = b"",
    end: bytes = b".",
    kind: bytes = b"X\7\0\0\0storage",
) -> bytes:
    location = b"X\3\0\0\0cpu"
    place = b"(" + kind + storage + key + location + length + b"tQ"
    return b"\x80\2" + rebuild + b"(" + place + offset + shape + strides + gradient + hooks + more + b"tR" + end


def with_pickle(pickle: bytes) -> bytes:
    return repacked(of_torch(rows()), change=lambda name, data: pickle if name.endswith("data.pkl") else data)


HUGE = b"\x8a\x09" + b"\xff" * 8 + b"\0"  # 2**64 - 1
BAD_PICKLES: dict[str, dict[str, bytes]] = {
    "another function": {"rebuild": b"ctorch._utils\n_rebuild_sparse_tensor\n"},
    "a call of the system": {"rebuild": b"cos\nsystem\n"},
    "a function with a space": {"rebuild": b"ctorch._utils _rebuild_tensor_v2\n\n"},
    "a storage as function": {"rebuild": b"ctorch\nFloatStorage\n"},
    "hooks as function": {"rebuild": b"ccollections\nOrderedDict\n"},
    "double storage": {"storage": b"ctorch\nDoubleStorage\n"},
    "function as storage": {"storage": b"ctorch._utils\n_rebuild_tensor_v2\n"},
    "text as storage": {"storage": b"X\5\0\0\0torch"},
    "no storage": {"kind": b"X\6\0\0\0module"},
    "another key": {"key": b"X\1\0\0\0001"},
    "a key that climbs": {"key": b"X\x0b\0\0\0../data.pkl"},
    "a number as key": {"key": b"K\0"},
    "a shorter storage": {"length": b"K\x17"},
    "a longer storage": {"length": b"K\x19"},
    "a huge storage": {"length": HUGE},
    "a negative storage": {"length": b"J\xff\xff\xff\xff"},
    "an offset beyond": {"offset": b"K\1"},
    "a huge offset": {"offset": HUGE},
    "a negative offset": {"offset": b"J\xff\xff\xff\xff"},
    "true as offset": {"offset": b"\x88"},
    "more rows than there are": {"shape": b"K\5K\6\x86"},
    "huge rows": {"shape": HUGE + b"K\6\x86"},
    "huge both": {"shape": HUGE + HUGE + b"\x86", "strides": b"K\0K\0\x86"},
    "negative rows": {"shape": b"J\xff\xff\xff\xffK\6\x86"},
    "true as rows": {"shape": b"\x88K\6\x86"},
    "one size": {"shape": b"K\x18\x85"},
    "three sizes": {"shape": b"K\1K\4K\6\x87", "strides": b"K\x18K\6K\1\x87"},
    "no sizes": {"shape": b")", "strides": b")"},
    "one stride": {"strides": b"K\1\x85"},
    "a stride beyond": {"strides": b"K\7K\1\x86"},
    "a huge stride": {"strides": HUGE + b"K\1\x86"},
    "a negative stride": {"strides": b"J\xfa\xff\xff\xffK\1\x86"},
    "hooks": {"hooks": b"ccollections\nOrderedDict\n)R}"},
    "no hooks": {"hooks": b"N"},
    "a dict as hooks": {"hooks": b"}"},
    "hooks with something": {"hooks": b"ccollections\nOrderedDict\nK\1\x85R"},
    "metadata": {"more": b"}"},
    "a number as gradient": {"gradient": b"K\0"},
    "a second value": {"end": b"K\1."},
    "something after the end": {"end": b".K\1."},
    "no end": {"end": b""},
    "build": {"end": b"}b."},
    "reduce again": {"end": b")R."},
    "a tuple without a mark": {"end": b"t."},
    "memo of nothing": {"rebuild": b"h\5"},
    "stack global": {"rebuild": b"X\2\0\0\0osX\6\0\0\0system\x93"},
    "instance": {"rebuild": b"(ios\nsystem\n"},
    "an extension": {"rebuild": b"\x82\1"},
}


def test_the_pickle_of_the_next_test_is_good_where_nothing_is_changed() -> None:
    assert is_same(read(with_pickle(pickled())), rows())
    assert describe(pickled()).strides == (WIDTH, 1)


@pytest.mark.parametrize("what", BAD_PICKLES)
def test_pickles_with_anything_else_in_them_are_refused(what: str) -> None:
    refused(with_pickle(pickled(**BAD_PICKLES[what])))


def test_zip_files_that_hide_something_are_refused() -> None:
    good = of_torch(rows())

    def content(name_end: str, change: Callable[[bytes], bytes | None], **options: Any) -> bytes:
        return repacked(good, change=lambda name, data: change(data) if name.endswith(name_end) else data, **options)

    deflate = zipfile.ZIP_DEFLATED
    refused(content("data.pkl", lambda _: None))
    refused(content("/data/0", lambda _: None))
    refused(content("byteorder", lambda _: b"big"))
    refused(content("data.pkl", lambda data: data + b" " * 5000))
    assert "more than" in refused(content("/data/0", lambda _: bytes(10**7), method=deflate))
    assert "more than" in refused(content("data.pkl", lambda _: bytes(10**7), method=deflate))
    refused(content("/data/0", lambda data: data, method=zipfile.ZIP_BZIP2))
    refused(content("/data/0", lambda data: data, method=zipfile.ZIP_LZMA))
    buffer = io.BytesIO(good)
    with zipfile.ZipFile(buffer, "a") as more:
        for i in range(40):
            more.writestr(f"x{i}", b"")
    assert "entries" in refused(buffer.getvalue())
    for twice in ("archive/data.pkl", "other/data.pkl"):
        buffer = io.BytesIO(good)
        with zipfile.ZipFile(buffer, "a") as more, warnings.catch_warnings(action="ignore"):
            more.writestr(twice, b"x")
        refused(buffer.getvalue())
    refused(good + b"x")
    refused(good[:-1])
    values = rows().numpy().tobytes()
    at = good.index(values)
    refused(good[: at + 5] + bytes([good[at + 5] ^ 1]) + good[at + 6 :])  # the check sum tells
    # A directory that announces less than what unpacks, or more.
    packed = repacked(good, method=deflate)
    size = struct.pack("<L", len(values))
    for other in (0, len(values) - 1, len(values) + 1, 0xFFFFFFFF):
        refused(packed.replace(size, struct.pack("<L", other)))


def npy(header: str, values: bytes = bytes(96), version: bytes = b"\1\0", length: int | None = None) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) if length is None else length) + text + values


@pytest.mark.parametrize(
    "file",
    [
        of_numpy(np.zeros((ROWS, WIDTH))),
        of_numpy(np.zeros((ROWS, WIDTH), ">f4")),
        of_numpy(np.zeros((ROWS, WIDTH), "<i4")),
        of_numpy(np.full((ROWS, WIDTH), None)),
        of_numpy(np.full((ROWS, WIDTH), Evil())),
        of_numpy(np.zeros((ROWS, WIDTH), [("a", "<f4")])),
        of_numpy(np.zeros(WIDTH, np.float32)),
        of_numpy(np.zeros((1, ROWS, WIDTH), np.float32)),
        of_numpy(np.zeros((0, WIDTH), np.float32)),
        of_numpy(np.zeros((MAX_LEN + 1, WIDTH), np.float32)),
        of_numpy(np.zeros((ROWS, WIDTH), np.float32))[:-1],
        of_numpy(np.zeros((ROWS, WIDTH), np.float32)) + b"\0",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6)}", length=60000),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6)}", version=b"\4\0"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, -6)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 10**9)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999999, 6)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4 6)}"),
        npy("{'descr': '<f4', 'fortran_order': True, 'shape': (4, 6)}", bytes(95)),
        npy("{'descr': '<f4', 'descr': '<f4', 'shape': (4, 6)}"),
        npy("{'descr': '<f4', 'shape': (4, 6)}"),
        npy("__import__('os').system('x')"),
        npy("{" + " " * 900 + "}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "4, " * 300 + ")}"),
    ],
)
def test_bad_npy_files_are_refused(file: bytes) -> None:
    refused(file)


def safetensors(header: Any, values: bytes = bytes(96)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


GOOD = {"dtype": "F32", "shape": [ROWS, WIDTH], "data_offsets": [0, 96]}


@pytest.mark.parametrize(
    "file",
    [
        save_safetensors({"a": rows(), "b": rows()}),
        save_safetensors({"a": rows(torch.float64)}),
        save_safetensors({"a": torch.zeros(ROWS, WIDTH, dtype=torch.int32)}),
        save_safetensors({"a": torch.zeros(WIDTH)}),
        save_safetensors({"a": torch.zeros(MAX_LEN + 1, WIDTH)}),
        save_safetensors({}),
        safetensors({"__metadata__": GOOD}),
        safetensors({"a": GOOD}, bytes(95)),
        safetensors({"a": GOOD}, bytes(97)),
        safetensors({"a": GOOD | {"shape": [ROWS, "6"]}}),
        safetensors({"a": GOOD | {"shape": [ROWS, 6.0]}}),
        safetensors({"a": GOOD | {"shape": [-4, -6]}}),
        safetensors({"a": GOOD | {"shape": [10**18, 6]}}),
        safetensors({"a": GOOD | {"shape": [10**40, 6]}}),
        safetensors({"a": GOOD | {"dtype": ["F32"]}}),
        safetensors({"a": GOOD | {"data_offsets": [4, 100]}}),
        safetensors({"a": GOOD | {"data_offsets": None}}),
        safetensors({"a": 5}),
        safetensors(b"{" + b"[" * 60000),
        safetensors(b'{"a":' * 10000),
        safetensors(b"{\xff}"),
        safetensors(b"{" + b" " * 2**17),
        struct.pack("<Q", 2**64 - 1) + b"{}",
        b"",
        b"PK\3\4",
        b"\x93NUMPY",
        b"\x80\2.",
        b"GGUF" + bytes(100),
    ],
)
def test_bad_safetensors_and_files_of_no_known_kind_are_refused(file: bytes) -> None:
    refused(file)


@pytest.mark.parametrize("text", ["%", "AAA", "AAAA\n", "ÄÖ==", "", "AA==AA==", "A" * 10**6, "😀"])
def test_what_is_no_base64_or_more_than_any_prompt_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_embeds([text], width=WIDTH, max_model_len=MAX_LEN)
    assert caught.value.field == "prompt_embeds"


def test_all_tensors_of_a_request_together_have_a_limit() -> None:
    """Small files that each unfold to what one prompt may have."""
    width, length = 1024, 2**13
    file = of_torch(torch.zeros(1, width).expand(length, width))
    texts = [base64.b64encode(file).decode()] * (MAX_ALL_BYTES // (4 * width * length) + 1)
    with pytest.raises(InvalidRequest, match="more than"):
        decode_embeds(texts, width=width, max_model_len=length)


# ---- whatever comes ----

SEEDS = [
    of_torch(rows()),
    of_torch(rows(torch.bfloat16).t().contiguous().t()),
    repacked(of_torch(rows(torch.float16)), method=zipfile.ZIP_DEFLATED),
    of_numpy(rows().numpy()),
    of_safetensors(rows()),
]


def holds(data: bytes) -> None:
    """A file gives a tensor that may be one of a prompt, or ``InvalidRequest``, and never anything else."""
    try:
        found = read(data)
    except InvalidRequest as error:
        assert error.field == "prompt_embeds"
        return
    assert found.shape[1] == WIDTH and 1 <= found.shape[0] <= MAX_LEN
    assert len(found.data) == found.shape[0] * WIDTH * (4 if found.dtype == "float32" else 2) <= MAX_BYTES


quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CHANGE = st.tuples(st.integers(0, 2**16), st.sampled_from(["set", "drop", "insert", "word"]), st.binary(max_size=8))


@quick
@given(st.sampled_from(SEEDS), st.lists(CHANGE, min_size=1, max_size=4))
def test_damaged_files(seed: bytes, changes: list[tuple[int, str, bytes]]) -> None:
    data = bytearray(seed)
    for place, kind, some in changes:
        at = place % (len(data) + 1)
        if kind == "insert":
            data[at:at] = some
        elif kind == "drop":
            del data[at : at + len(some)]
        else:
            part = some if kind == "set" else (b"\xff" * 4 if len(some) % 2 else b"\0" * 4)
            data[at : at + len(part)] = part
    holds(bytes(data))


OPCODES = [piece for bad in BAD_PICKLES.values() for piece in bad.values()] + [
    bytes([code]) for code in b"(.0125NRQbtsu)}]\x85\x86\x87\x88\x89\x8a\x93\x94\x95hqjrXKMJcVSTGFILp"
]


@quick
@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=4), max_size=12), st.integers(0, 200), st.booleans())
def test_pickles_of_any_instructions(pieces: list[bytes], place: int, whole: bool) -> None:
    base = b"" if whole else pickled()
    at = place % (len(base) + 1)
    with contextlib.suppress(ValueError):
        describe(base[:at] + b"".join(pieces) + base[at:])
    holds(with_pickle(base[:at] + b"".join(pieces) + base[at:]))


@quick
@given(st.sampled_from([b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x40\0\0\0\0\0\0\0{"]), st.binary(max_size=200))
def test_any_bytes(start: bytes, rest: bytes) -> None:
    holds(start + rest)
