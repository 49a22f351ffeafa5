"""Where rays are sampled: the cube, the coarse cells, kernel smoothing without wrap-around, importance sampling."""

import math

import pytest
import torch

from hifa.cameras import Rays
from hifa.rendering.sampling import (
    box_intersection,
    cells_around,
    importance_samples,
    smooth_weights,
    stratified_edges,
)


def ray(origin, direction) -> Rays:
    directions = torch.nn.functional.normalize(torch.tensor([direction], dtype=torch.float32), dim=-1)
    return Rays(torch.tensor([origin], dtype=torch.float32), directions)


@pytest.mark.parametrize(
    "origin, direction, near, far",
    [
        # Parallel to an axis: two components are exactly zero.
        ((3, 0, 0), (-1, 0, 0), 2, 4),
        ((3, 0.5, -0.9), (-1, 0, 0), 2, 4),
        ((0.2, -4, 0), (0, 1, 0), 3, 5),
        ((0, 0, 2.5), (0, 0, -1), 1.5, 3.5),
        # Along the diagonal, from corner to corner.
        ((2, 2, 2), (-1, -1, -1), math.sqrt(3), 3 * math.sqrt(3)),
        # In the plane z = 0 at 45 degrees through the middle.
        ((2, 2, 0), (-1, -1, 0), math.sqrt(2), 3 * math.sqrt(2)),
        # From within: the part behind the origin does not count.
        ((0, 0, 0), (1, 0, 0), 0, 1),
        ((0.5, 0, 0), (1, 0, 0), 0, 0.5),
    ],
)
def test_box_intersection_by_hand(origin, direction, near, far):
    first, last = box_intersection(ray(origin, direction), 1.0)
    assert first.item() == pytest.approx(near, abs=1e-5)
    assert last.item() == pytest.approx(far, abs=1e-5)


@pytest.mark.parametrize(
    "origin, direction",
    [
        ((3, 1.5, 0), (-1, 0, 0)),  # parallel to a face, beside it
        ((3, 0, 0), (1, 0, 0)),  # away from it
        ((3, 0, 0), (-1, 1, 0)),  # past it
        ((0, 0, 5), (0, 1, 0)),
    ],
)
def test_rays_that_miss_the_box_have_no_length(origin, direction):
    near, far = box_intersection(ray(origin, direction), 1.0)
    assert torch.isfinite(near).all() and torch.equal(near, far)


def test_box_scales_with_the_bound():
    near, far = box_intersection(ray((3, 0, 0), (-1, 0, 0)), 0.5)
    assert (near.item(), far.item()) == pytest.approx((2.5, 3.5))


def test_stratified_edges_by_hand():
    near, far = torch.tensor([2.0]), torch.tensor([4.0])
    edges = [2.0, 2.5, 3.0, 3.5, 4.0]
    assert stratified_edges(near, far, 4).tolist() == [edges]
    assert stratified_edges(near, far, 4, torch.tensor([0.5])).tolist() == [edges]
    # An offset of 0 moves the edges by half a cell of 0.5 towards the camera, clipped to [near, far].
    assert stratified_edges(near, far, 4, torch.tensor([0.0])).tolist() == [[2.0, 2.25, 2.75, 3.25, 3.75]]
    shifted = stratified_edges(near, far, 4, torch.tensor([0.75]))
    torch.testing.assert_close(shifted, torch.tensor([[2.125, 2.625, 3.125, 3.625, 4.0]]))


@pytest.mark.parametrize(
    "weights, kernel, expected",
    [
        ([0, 0, 3, 0, 0], (1, 1, 1), [0, 1, 1, 1, 0]),
        ([1, 2, 3, 4, 5], (1, 1, 1), [1, 2, 3, 4, 3]),  # ends: (0 + 1 + 2) / 3 and (4 + 5 + 0) / 3
        ([0, 0, 4, 0, 0], (1, 2, 1), [0, 1, 2, 1, 0]),
        ([4, 0, 0, 0, 8], (1, 2, 1), [2, 1, 0, 2, 4]),
        ([0, 0, 0, 9, 0, 0, 0], (1, 2, 3, 2, 1), [0, 1, 2, 3, 2, 1, 0]),
        ([9, 0, 0, 0, 0, 0, 0], (1, 2, 3, 2, 1), [3, 2, 1, 0, 0, 0, 0]),
        # v_i = sum_j K_j v_(i + j - 1) / sum K: the last tap reads the next cell.
        ([0, 0, 10, 0, 0], (2, 3, 5), [0, 5, 3, 2, 0]),
        ([1, 2, 3], (7,), [1, 2, 3]),
    ],
)
def test_smoothing_by_hand(weights, kernel, expected):
    smooth = smooth_weights(torch.tensor([weights], dtype=torch.float32), kernel)
    torch.testing.assert_close(smooth, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 2, 1), (1, 1, 1, 1, 1), (1, 2, 3, 4, 3, 2, 1)])
@pytest.mark.parametrize("cell", [0, 19])
def test_smoothing_never_wraps_around(kernel, cell):
    weights = torch.zeros(1, 20)
    weights[0, cell] = 1
    smooth = smooth_weights(weights, kernel)[0]
    reach = len(kernel) // 2
    far_end = smooth[reach + 1 :] if cell == 0 else smooth[: 19 - reach]
    assert far_end.abs().max() == 0


def test_smoothing_keeps_rays_apart():
    weights = torch.zeros(3, 8)
    weights[1, 4] = 1
    smooth = smooth_weights(weights, (1, 1, 1))
    assert smooth[0].sum() == 0 and smooth[2].sum() == 0 and smooth[1].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 2, 2, 1), (0, 0, 0), (1, -1, 1)])
def test_bad_kernels_are_refused_with_their_values(kernel):
    with pytest.raises(ValueError, match="odd number of non-negative") as error:
        smooth_weights(torch.ones(1, 8), kernel)
    assert str(list(kernel)) in str(error.value)


def test_importance_samples_by_hand():
    # All weight in the second of four unit cells: quantiles 1/8, 3/8, 5/8, 7/8 of that cell.
    edges, weights = torch.arange(5.0)[None], torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    samples = importance_samples(edges, weights, 4, kernel=(1,))
    torch.testing.assert_close(samples, torch.tensor([[1.125, 1.375, 1.625, 1.875]]), rtol=0, atol=1e-3)
    # An offset of 0 takes the quantiles 0, 1/4, 1/2, 3/4 instead. The first lies at the start of the ray, where the
    # floor of the weights begins.
    samples = importance_samples(edges, weights, 4, kernel=(1,), offset=torch.tensor([0.0]))
    torch.testing.assert_close(samples[:, 1:], torch.tensor([[1.25, 1.5, 1.75]]), rtol=0, atol=1e-3)


def test_importance_samples_with_the_boxcar_by_hand():
    # Smoothed to a third each in the cells 2, 3 and 4 (of unit length): six quantiles, two in each cell.
    edges, weights = torch.arange(8.0)[None], torch.tensor([[0, 0, 0, 1.0, 0, 0, 0]])
    samples = importance_samples(edges, weights, 6)
    torch.testing.assert_close(samples, torch.tensor([[2.25, 2.75, 3.25, 3.75, 4.25, 4.75]]), rtol=0, atol=1e-3)


def test_a_surface_in_the_first_cell_draws_no_sample_to_the_last():
    # Half in the cell itself, half in its neighbor, nothing at the other end, where a wrap would put a third.
    edges, weights = torch.arange(11.0)[None], torch.zeros(1, 10)
    weights[0, 0] = 1
    samples = importance_samples(edges, weights, 4)
    torch.testing.assert_close(samples, torch.tensor([[0.25, 0.75, 1.25, 1.75]]), rtol=0, atol=1e-3)
    samples = importance_samples(edges, weights.flip(-1), 4)
    torch.testing.assert_close(samples, torch.tensor([[8.25, 8.75, 9.25, 9.75]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kernel", [(1,), (1, 1, 1), (1, 2, 3, 2, 1)])
@pytest.mark.parametrize("n_samples", [2, 16, 97])
def test_importance_samples_are_sorted_and_inside(kernel, n_samples):
    generator = torch.Generator().manual_seed(n_samples)
    near = 1 + torch.rand(64, generator=generator)
    edges = stratified_edges(near, near + 2 * torch.rand(64, generator=generator), 24)
    # Few cells with weight, as on a ray that meets a surface.
    weights = torch.rand(64, 24, generator=generator) * (torch.rand(64, 24, generator=generator) > 0.8)
    samples = importance_samples(edges, weights, n_samples, kernel, torch.rand(64, generator=generator))
    assert samples.shape == (64, n_samples) and torch.isfinite(samples).all()
    assert (samples[:, 1:] >= samples[:, :-1]).all()
    assert (samples >= edges[:, :1]).all() and (samples <= edges[:, -1:]).all()


def test_importance_samples_are_concentrated_around_the_weight():
    edges, weights = torch.linspace(0, 1, 65)[None], torch.zeros(1, 64)
    weights[0, 40] = 0.9
    samples = importance_samples(edges, weights, 200)
    near = (samples >= edges[0, 39]) & (samples <= edges[0, 42])
    assert near.float().mean() > 0.99


def test_share_of_samples_follows_the_weights():
    edges, weights = torch.linspace(0, 4, 5)[None], torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    samples = importance_samples(edges, weights, 1000, kernel=(1,))
    counts = torch.histc(samples, 4, 0, 4)
    torch.testing.assert_close(counts, torch.tensor([100.0, 200, 300, 400]), rtol=0, atol=2)


def test_empty_rays_are_sampled_uniformly_and_never_nan():
    edges = torch.linspace(2, 4, 9)[None]
    samples = importance_samples(edges, torch.zeros(1, 8), 8, kernel=(1,))
    torch.testing.assert_close(samples, torch.linspace(2.125, 3.875, 8)[None])
    assert torch.isfinite(importance_samples(edges, torch.zeros(1, 8), 8)).all()
    # A ray that misses the cube has cells without length.
    point = importance_samples(torch.full((1, 9), 3.0), torch.zeros(1, 8), 8)
    assert (point == 3).all()


def test_no_gradient_flows_into_the_places():
    weights = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edges = torch.linspace(0, 1, 9).expand(2, -1)
    assert not importance_samples(edges, weights, 4).requires_grad


def test_rays_do_not_influence_each_other():
    generator = torch.Generator().manual_seed(0)
    edges, weights = torch.linspace(0, 1, 17).expand(5, -1).contiguous(), torch.rand(5, 16, generator=generator)
    together = importance_samples(edges, weights, 12)
    alone = torch.cat([importance_samples(edges[i : i + 1], weights[i : i + 1], 12) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_cells_around_by_hand():
    # Halfway edges 1.5 and 3; the outer cells reach as far beyond their sample as the inner edge lies before it.
    assert cells_around(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[0.5, 1.5, 3.0, 5.0]]
    assert cells_around(torch.full((1, 3), 2.0)).tolist() == [[2.0] * 4]
