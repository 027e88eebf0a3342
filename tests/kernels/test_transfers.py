"""Copies between main memory and a device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vllm_kernels.transfers import ALIGNMENT, download, pack, unpack, upload, upload_arrays

CPU = torch.device("cpu")
DTYPES = (np.int64, np.int32, np.float64, np.float32, np.uint8, np.bool_)


@given(
    st.lists(
        st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(max_dims=2, min_side=0, max_side=9))),
        max_size=6,
    )
)
def test_what_is_packed_comes_out_again_at_aligned_places(given_arrays: list[np.ndarray]) -> None:
    packed, starts = pack(given_arrays, pinned=False)
    assert packed.dtype == torch.uint8
    for array, start, tensor in zip(given_arrays, starts, unpack(packed, starts, given_arrays), strict=True):
        assert start % ALIGNMENT == 0 and start + array.nbytes <= len(packed)
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_rows_of_a_larger_array_are_packed_as_they_look() -> None:
    table = np.arange(60, dtype=np.int32).reshape(6, 10)
    part = table[np.array([4, 1]), :3]
    packed, starts = pack([part.T, part], pinned=False)
    turned, straight = unpack(packed, starts, [part.T, part])
    np.testing.assert_array_equal(turned.numpy(), part.T)
    np.testing.assert_array_equal(straight.numpy(), part)


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.arange(5)
    (tensor,) = upload_arrays([array], CPU)
    array[2] = 9
    assert tensor.tolist() == [0, 1, 9, 3, 4]
    assert upload(tensor, CPU) is tensor
    (there,) = download(tensor).wait()
    assert there is tensor


def test_another_device_gets_all_arrays_as_views_of_one_copy() -> None:
    meta = torch.device("meta")
    there = upload_arrays([np.zeros((2, 3), np.int32), np.zeros(7)], meta)
    assert [(one.device, one.dtype, tuple(one.shape)) for one in there] == [
        (meta, torch.int32, (2, 3)),
        (meta, torch.float64, (7,)),
    ]
    assert there[1].storage_offset() * 8 == 2 * ALIGNMENT  # after the first one's 24 bytes
    assert upload(torch.zeros(3), meta).device == meta


@pytest.mark.gpu
def test_on_a_gpu_copies_arrive_and_their_sources_may_be_used_again_afterwards() -> None:
    device = torch.device("cuda")
    kept = []
    for step in range(200):
        arrays = [np.full(1000 + step, step, np.int64), np.full((3, step + 1), -step, np.int32)]
        kept.append((step, upload_arrays(arrays, device), upload(torch.full((step + 1,), step), device)))
    for step, (first, second), third in kept:
        late = download(first, second, third)
        for tensor in (first, second, third):
            tensor.zero_()  # after the copy, as the device sees it
        values = [set(tensor.flatten().tolist()) for tensor in late.wait()]
        assert values == [{step}, {-step}, {step}]
        assert late.wait()[0].is_pinned()
