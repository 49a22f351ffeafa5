"""The Triton kernels of the hash grid against plain torch, in Triton's interpreter, which needs no GPU."""

import os

import pytest
import torch


os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are made, that is at the import below

from hifa.field.hash_grid import encode_torch, level_resolutions
from hifa.field.hash_grid_triton import BLOCK, EncodeTriton
from tests.helpers.hash_grids import SIZES, make_points


def make_table(levels: int, entries: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(levels * entries, 2, generator=torch.Generator().manual_seed(0))
    return values.to(dtype).requires_grad_()


def both(points: torch.Tensor, size: tuple, dtype: torch.dtype = torch.float32) -> list[tuple]:
    """Encoding and gradient of the table, by the kernels and by plain torch in float32 on the same values."""
    levels, base, finest, log2_hashmap_size = size
    resolutions, entries = level_resolutions(levels, base, finest), 2**log2_hashmap_size
    table = make_table(levels, entries, dtype)
    exact = table.detach().float().requires_grad_()
    ours = EncodeTriton.apply(points, table, torch.tensor(resolutions), entries)
    theirs = encode_torch(points.float(), exact, resolutions, entries)
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    ours.backward(upstream)
    theirs.backward(upstream.float())
    return [(ours.detach(), theirs.detach()), (table.grad, exact.grad)]


@pytest.mark.parametrize("size", [*SIZES, (2, 16, 2048, 19)], ids=lambda size: "-".join(map(str, size)))
def test_kernels_agree_with_torch(size):
    """Dense and hashed levels; points inside, on borders, at corners and outside."""
    for ours, theirs in both(make_points(), size):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_any_number_of_points(count):
    for ours, theirs in both(make_points()[:count], (3, 4, 32, 8)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_table_is_summed_in_float32(dtype, tolerance):
    (ours, theirs), (gradient, expected) = both(make_points(), (3, 4, 32, 8), dtype)
    assert ours.dtype == gradient.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max())


def test_double_precision_points_and_strides():
    points = make_points().double().T.contiguous().T
    assert not points.is_contiguous()
    for ours, theirs in both(points, (3, 4, 32, 8)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_no_points():
    (ours, theirs), (gradient, expected) = both(torch.empty(0, 3), (3, 4, 32, 8))
    assert ours.shape == theirs.shape == (0, 6)
    assert not gradient.any() and not expected.any()


def test_gradient_of_many_points_in_one_cell():
    """1,024 points at the middle of the only cell of level 0: every corner gets an eighth of each."""
    table = make_table(1, 8)
    points = torch.full((1024, 3), 0.5)
    EncodeTriton.apply(points, table, torch.tensor([1]), 8).sum().backward()
    torch.testing.assert_close(table.grad, torch.full((8, 2), 128.0))
