import pytest
import torch

from vllm_kernels.ops.embedding import embedding

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 16, 40, 257])
def test_rows_are_those_of_the_ids(face, dtype, size):
    torch.manual_seed(0)
    table, ids = torch.randn(30, size).to(dtype), torch.randint(0, 30, (50,))
    assert torch.equal(embedding(ids, table), table[ids])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_scale_is_rounded_before_the_product_as_in_gemma(face, dtype):
    torch.manual_seed(0)
    table, ids = torch.randn(30, 40).to(dtype), torch.randint(0, 30, (500,))
    expected = torch.nn.functional.embedding(ids, table) * torch.tensor(1152**0.5, dtype=dtype)
    assert torch.equal(embedding(ids, table, 1152**0.5), expected)


def test_a_large_gather_is_the_same_with_any_number_of_threads(level, num_threads):
    torch.manual_seed(0)
    table, ids = torch.randn(1000, 512).bfloat16(), torch.randint(0, 1000, (999,))
    assert torch.equal(embedding(ids, table), table[ids])


def test_the_rows_of_a_part_of_a_table_are_found_too(face):
    table = torch.arange(60.0).view(10, 6)
    ids = torch.tensor([9, 0])
    assert torch.equal(embedding(ids, table[:, 1:4]), table[ids, 1:4])


def test_no_ids_give_no_rows(face):
    assert embedding(torch.zeros(0, dtype=torch.int64), torch.zeros(3, 4)).shape == (0, 4)


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_id_outside_of_the_table_is_refused(refusing_face, bad):
    with pytest.raises(IndexError):
        embedding(torch.tensor([0, bad]), torch.zeros(3, 4))


def test_wrong_arguments_are_named():
    table = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="ids must have shape"):
        embedding(torch.zeros(1, 1, dtype=torch.int64), table)
    with pytest.raises(ValueError, match=r"ids must be torch.int64"):
        embedding(torch.zeros(1), table)
    with pytest.raises(ValueError, match="table must have shape"):
        embedding(torch.tensor([0]), table[0])
    with pytest.raises(ValueError, match="table must be floating point"):
        embedding(torch.tensor([0]), table.int())
