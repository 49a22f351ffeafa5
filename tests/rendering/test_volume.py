"""Compositing against transmittances worked by hand; depth and z-variance of simple rays."""

import math

import pytest
import torch

from hifa.rendering.volume import accumulate, depth_moments, disparity, distortion, weights_from_density, z_entropy


def test_weights_by_hand():
    # Optical depths ln 2, ln 4, 0, ln 2 (cells of length 1, 2, 1, 0.5): opacities 1/2, 3/4, 0, 1/2 behind
    # transmittances 1, 1/2, 1/8, 1/8.
    edges = torch.tensor([[0.0, 1.0, 3.0, 4.0, 4.5]])
    density = torch.tensor([[math.log(2), math.log(2), 0.0, 2 * math.log(2)]])
    weights = weights_from_density(edges, density)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.375, 0.0, 0.0625]]))
    # What is left, 1/16, is the share of the background.
    assert accumulate(weights).item() == pytest.approx(15 / 16)


def test_colors_by_hand():
    weights = torch.tensor([[0.5, 0.25, 0.0], [0.1, 0.0, 0.6]])
    colors = torch.eye(3).expand(2, 3, 3)  # red, green, blue
    torch.testing.assert_close(accumulate(weights, colors), weights)
    torch.testing.assert_close(accumulate(weights), torch.tensor([[0.75], [0.7]]))


def test_an_opaque_cell_hides_the_rest():
    weights = weights_from_density(torch.arange(5.0)[None], torch.tensor([[0.0, 1e6, 3.0, 1e6]]))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_cells_without_length_have_no_weight():
    weights = weights_from_density(torch.full((1, 5), 2.0), torch.full((1, 4), 100.0))
    assert (weights == 0).all()


def test_splitting_a_cell_changes_nothing():
    whole = weights_from_density(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.7, 1.3]]))
    split = weights_from_density(torch.tensor([[0.0, 0.25, 1.0, 2.0]]), torch.tensor([[0.7, 0.7, 1.3]]))
    torch.testing.assert_close(split[:, :2].sum(), whole[0, 0])
    torch.testing.assert_close(split[:, 2], whole[:, 1])


def test_gradient_of_the_weights():
    # d/d sigma of 1 - exp(-sigma d) is d exp(-sigma d): 2 / 4 at sigma = ln 2, d = 2.
    density = torch.tensor([[math.log(2)]], requires_grad=True)
    weights_from_density(torch.tensor([[1.0, 3.0]]), density).sum().backward()
    assert density.grad.item() == pytest.approx(0.5)


def test_moments_by_hand():
    z = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    weights = torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.1, 0.3]])
    depth, variance = depth_moments(weights, z)
    # Shares 1/4 and 3/4: 2.5, and 1/4 * 1.5^2 + 3/4 * 0.5^2.
    torch.testing.assert_close(depth, torch.tensor([2.0, 2.0, 2.5]))
    torch.testing.assert_close(variance, torch.tensor([1.0, 1.0, 0.75]))


@pytest.mark.parametrize("opacity", [0.01, 0.5, 1.0])
def test_a_single_sample_has_its_depth_and_no_variance_whatever_its_opacity(opacity):
    weights = torch.tensor([[0.0, 0.0, opacity, 0.0]])
    depth, variance = depth_moments(weights, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert depth.item() == pytest.approx(3)
    assert variance.item() == pytest.approx(0, abs=1e-12)


def test_a_half_transparent_slab_is_as_deep_as_an_opaque_thin_one():
    z = torch.linspace(2, 4, 101)[None]
    opaque, half = torch.zeros(1, 101), torch.zeros(1, 101)
    opaque[0, 50] = 1.0
    half[0, 49:52] = 0.5 / 3
    assert depth_moments(half, z)[0].item() == pytest.approx(depth_moments(opaque, z)[0].item(), abs=1e-5)
    assert depth_moments(opaque, z)[0].item() == pytest.approx(3)


def test_moments_shift_and_scale_with_z():
    generator = torch.Generator().manual_seed(0)
    z, weights = torch.rand(4, 9, generator=generator).sort(-1).values, torch.rand(4, 9, generator=generator)
    depth, variance = depth_moments(weights, z)
    moved_depth, moved_variance = depth_moments(weights, 3 * z + 2)
    torch.testing.assert_close(moved_depth, 3 * depth + 2)
    torch.testing.assert_close(moved_variance, 9 * variance)


def test_an_empty_ray_has_zero_moments_and_finite_gradients():
    weights = torch.zeros(2, 5, requires_grad=True)
    z = torch.linspace(1, 2, 5).expand(2, -1)
    depth, variance = depth_moments(weights, z)
    assert depth.tolist() == variance.tolist() == [0, 0]
    (depth.sum() + variance.sum()).backward()
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize("n", [1, 4, 50])
def test_entropy_of_a_uniform_ray_is_the_log_of_its_length_however_it_is_cut(n):
    lengths = torch.full((1, n), 2.5 / n)
    assert z_entropy(lengths / 2.5, lengths).item() == pytest.approx(math.log(2.5), abs=1e-5)


def test_entropy_by_hand():
    # Weights 1/2 and 1/4 on cells of length 1/2 and 1/8: shares 2/3 and 1/3, densities 1 and 2.
    weights, lengths = torch.tensor([[0.5, 0.0, 0.25]]), torch.tensor([[0.5, 1.0, 0.125]])
    assert z_entropy(weights, lengths).item() == pytest.approx(-math.log(2) / 3, abs=1e-6)


def test_entropy_of_empty_rays_and_cells_is_finite():
    weights = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    entropy = z_entropy(weights, torch.tensor([[0.1, 0.2, 0.0], [0.1, 0.0, 0.3]]))
    assert entropy[0] == 0 and entropy[1].item() == pytest.approx(-math.log(1e5), rel=1e-5)
    entropy.sum().backward()
    assert torch.isfinite(weights.grad).all()


def test_gradient_of_the_entropy_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    weights, lengths = 0.01 + torch.rand(2, 3, 7, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(z_entropy, (weights.requires_grad_(), lengths))


def test_distortion_by_hand():
    # Cells [0, 1] and [1, 3] with middles 1/2 and 2: 2 w1 w2 3/2 + (w1^2 + 2 w2^2) / 3.
    edges = torch.tensor([[0.0, 1.0, 3.0]])
    assert distortion(torch.tensor([[0.5, 0.25]]), edges).item() == pytest.approx(0.375 + 0.375 / 3)
    assert distortion(torch.tensor([[0.0, 0.9]]), edges).item() == pytest.approx(2 * 0.81 / 3)


def test_distortion_is_the_sum_over_pairs_and_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    edges = torch.rand(3, 10, generator=generator, dtype=torch.float64).sort().values
    middles = 0.5 * (edges[:, 1:] + edges[:, :-1])
    pairs = weights[:, :, None] * weights[:, None] * (middles[:, :, None] - middles[:, None]).abs()
    expected = pairs.sum((1, 2)) + (weights**2 * edges.diff()).sum(1) / 3
    torch.testing.assert_close(distortion(weights, edges), expected)
    assert torch.autograd.gradcheck(distortion, (weights.requires_grad_(), edges))


def test_disparity_by_hand():
    depth = torch.tensor([0.5, 2.0, 4.0, 0.0], requires_grad=True)
    values = disparity(depth)
    assert values.tolist() == [2.0, 0.5, 0.25, 0.0]
    values.sum().backward()
    # d(1/z) = -1 / z^2; nothing, and not NaN, where the ray meets nothing.
    assert depth.grad.tolist() == [-4.0, -0.25, -0.0625, 0.0]
