"""Rays through fields of known shape, against closed forms, with and without a density grid."""

import math

import pytest
import torch

from hifa.cameras import Camera, Rays, camera_to_world, image_rays
from hifa.field import RadianceField
from hifa.rendering.density_grid import DensityGrid
from hifa.rendering.rays import RaySampling, render_rays


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def slab(density: float, low: float, high: float):
    """`density` for low <= x <= high."""
    return lambda points: density * ((points[:, 0] >= low) & (points[:, 0] <= high)).to(points.dtype)


def ball(density: float, radius: float):
    return lambda points: density * (points.norm(dim=-1) <= radius).to(points.dtype)


def along_x(*heights: float) -> Rays:
    """Rays from x = 3 towards -x at the given z; the cube [-1, 1]^3 is between the distances 2 and 4."""
    origins = torch.tensor([[3.0, 0.0, z] for z in heights])
    return Rays(origins, torch.tensor([[-1.0, 0.0, 0.0]]).expand(len(heights), 3))


def sampling_of(mode: str, field: RadianceField, n_coarse: int = 200, n_fine: int = 100) -> RaySampling:
    if mode == "two passes":
        return RaySampling(n_coarse, n_fine)
    grid = DensityGrid(50, field.bound)
    grid.refresh(field)
    return RaySampling(n_coarse, n_fine, grid=grid, min_opacity=0.01)


both_modes = pytest.mark.parametrize("mode", ["two passes", "density grid"])


@both_modes
def test_opaque_ball(mode, analytic_field):
    field = analytic_field(ball(400.0, 0.5), RED)
    impact = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    seen = render_rays(field, along_x(*impact.tolist()), sampling_of(mode, field))
    # The ray meets the surface at x = sqrt(r^2 - b^2) and sinks in by 1 / density on average.
    expected = 3 - (0.25 - impact**2).sqrt() + 1 / 400
    torch.testing.assert_close(seen.depth, expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(seen.opacity, torch.ones(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(seen.color, torch.tensor([RED]).expand(5, 3), rtol=0, atol=5e-3)
    # A surface is a delta: its z-variance is that of a depth of a few 1 / density, not of the size of the ball.
    assert seen.z_variance.max() < 1e-4


@both_modes
def test_translucent_slab(mode, analytic_field):
    # Density s over the length L = 0.6: opacity 1 - e^(-sL); the depth has the moments of an exponential cut at L.
    s, length = 2.0, 0.6
    field = analytic_field(slab(s, -0.3, 0.3), RED, behind=BLUE)
    seen = render_rays(field, along_x(0.0, 0.4), sampling_of(mode, field))
    left = math.exp(-s * length)
    mean = 2.7 + 1 / s - length * left / (1 - left)
    variance = 1 / s**2 - length**2 * left / (1 - left) ** 2
    # With a grid the slab's edges are found to within a sample, 0.02 here.
    atol = 5e-3 if mode == "two passes" else 2e-2
    torch.testing.assert_close(seen.opacity, torch.full((2,), 1 - left), rtol=0, atol=atol)
    torch.testing.assert_close(seen.depth, torch.full((2,), mean), rtol=0, atol=atol)
    torch.testing.assert_close(seen.z_variance, torch.full((2,), variance), rtol=0, atol=atol / 10)
    torch.testing.assert_close(seen.color, torch.tensor([[1 - left, 0, left]]).expand(2, 3), rtol=0, atol=atol)


def test_two_slabs_by_hand(analytic_field):
    # Half a red slab (density ln 2 / 0.2 over 0.2), behind it half a green one, behind that the blue background:
    # 1/2 red, 1/4 green, 1/4 blue.
    density = math.log(2) / 0.2

    def both(points):
        return slab(density, 0.4, 0.6)(points) + slab(density, -0.6, -0.4)(points)

    def color(points):
        return torch.where(points[:, :1] > 0, points.new_tensor(RED), points.new_tensor(GREEN))

    field = analytic_field(both, color, behind=BLUE)
    seen = render_rays(field, along_x(0.0), sampling_of("two passes", field))
    torch.testing.assert_close(seen.color, torch.tensor([[0.5, 0.25, 0.25]]), rtol=0, atol=5e-3)
    assert seen.opacity.item() == pytest.approx(0.75, abs=5e-3)
    # The slabs' middles are 2.5 and 3.5; in an exponential over a half-life of 0.2 the mean is 0.0885 from its start.
    inside = 0.2 / math.log(2) - 0.2
    assert seen.depth.item() == pytest.approx((2 * (2.4 + inside) + (3.4 + inside)) / 3, abs=1e-2)


def test_a_translucent_thin_sheet_is_as_deep_as_an_opaque_one(analytic_field):
    sheets = [analytic_field(slab(density, 0.19, 0.21)) for density in (math.log(2) / 0.02, 1000.0)]
    half, opaque = (render_rays(field, along_x(0.0), sampling_of("two passes", field)) for field in sheets)
    assert half.opacity.item() == pytest.approx(0.5, abs=0.05)
    assert opaque.opacity.item() == pytest.approx(1, abs=1e-3)
    assert half.depth.item() == pytest.approx(opaque.depth.item(), abs=0.01)
    assert half.depth.item() == pytest.approx(2.8, abs=0.01)


@both_modes
def test_nothing_on_the_ray_is_exactly_the_background(mode, analytic_field):
    # Two rays beside the cube, one through its empty corner, one through the ball.
    field = analytic_field(ball(50.0, 0.4))
    rays, sampling = along_x(1.5, -7.0, 0.9, 0.0), sampling_of(mode, field, 48, 24)
    seen = render_rays(field, rays, sampling)
    assert torch.equal(seen.color[:3], field.background(rays.directions)[:3])
    for values in (seen.opacity, seen.depth, seen.z_variance):
        assert (values[:3] == 0).all() and torch.isfinite(values).all()
    assert seen.opacity[3] > 0.9
    flat = torch.tensor([0.25, 0.5, 0.75])
    assert (render_rays(field, rays, sampling, background=flat).color[:3] == flat).all()


@both_modes
def test_background_network_shows_its_direction(mode):
    field = RadianceField(levels=2, base_resolution=4, max_resolution=8, log2_hashmap_size=8, blob_density=0.0)
    rays = image_rays(camera_to_world(Camera(20, 10, radius=8)), 40.0, 6)
    seen = render_rays(field, rays, sampling_of(mode, field, 8, 8))
    missing = seen.opacity == 0
    assert missing.any() and not missing.all()
    assert torch.equal(seen.color[missing], field.background(rays.directions)[missing])


@pytest.mark.parametrize("background", [None, torch.tensor([1.0, 1.0, 1.0])])
def test_thin_haze_does_not_darken(background, analytic_field):
    # White haze before white: every sample's weight is tiny, their sum is not. Weights 0.9e-4 each, 192 samples.
    field = analytic_field(slab(0.9e-4 * 192 / 2, -1.0, 1.0), (1.0, 1.0, 1.0), behind=(1.0, 1.0, 1.0))
    seen = render_rays(field, along_x(0.0, 0.5), RaySampling(128, 64), background)
    torch.testing.assert_close(seen.color, torch.ones(2, 3), rtol=0, atol=1 / 255)


def test_every_point_is_encoded_once(analytic_field):
    field = analytic_field(ball(20.0, 0.5))
    rays = along_x(*torch.linspace(-0.8, 0.8, 10).tolist())
    render_rays(field, rays, RaySampling(24, 16))
    assert sum(field.encoded) == 10 * (24 + 16)


def test_with_a_grid_only_fine_points_of_rays_that_meet_something_are_encoded(analytic_field):
    field = analytic_field(ball(20.0, 0.3))
    sampling = sampling_of("density grid", field, 24, 16)
    field.encoded.clear()
    # Three rays through the ball, four that stay far from it, two beside the cube.
    render_rays(field, along_x(-0.1, 0.0, 0.1, -0.9, -0.6, 0.6, 0.9, 1.2, 5.0), sampling)
    assert sum(field.encoded) == 3 * 16


def test_encoded_points_lie_in_the_cube(analytic_field):
    reach = []

    def density(points):
        reach.append(points.abs().max().item())
        return torch.ones(len(points))

    rays = image_rays(camera_to_world(Camera(35, 30, radius=2.5)), 60.0, 8)
    field = analytic_field(density)
    render_rays(field, rays, RaySampling(16, 8), offsets=torch.rand(64, 2, generator=torch.Generator().manual_seed(0)))
    # Points of rays that miss the cube have no weight, wherever they are.
    hits = Rays(rays.origins[27:29], rays.directions[27:29])
    reach.clear()
    render_rays(field, hits, RaySampling(16, 8))
    assert max(reach) <= 1 + 1e-5


@both_modes
def test_offsets_decide_the_samples(mode, analytic_field):
    field = analytic_field(lambda points: 5 * torch.exp(-10 * (points**2).sum(-1)))
    rays, sampling = along_x(0.0, 0.1, 0.2), sampling_of(mode, field, 16, 16)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 3, 2, generator=generator)
    once, again, other = (render_rays(field, rays, sampling, offsets=o).depth for o in (first, first, second))
    assert torch.equal(once, again) and not torch.equal(once, other)
    torch.testing.assert_close(once, other, rtol=0, atol=0.05)
    middle = render_rays(field, rays, sampling, offsets=torch.full((3, 2), 0.5)).depth
    assert torch.equal(middle, render_rays(field, rays, sampling).depth)


@both_modes
def test_rays_do_not_influence_each_other(mode, analytic_field):
    field = analytic_field(ball(30.0, 0.5))
    rays, sampling = along_x(0.0, 0.2, 0.45, 0.8), sampling_of(mode, field, 24, 16)
    together = render_rays(field, rays, sampling)
    for i in range(len(rays)):
        alone = render_rays(field, rays[i : i + 1], sampling)
        torch.testing.assert_close(alone.depth, together.depth[i : i + 1])
        torch.testing.assert_close(alone.color, together.color[i : i + 1])


@both_modes
def test_a_real_field_gives_proper_values_and_gradients(mode):
    field = RadianceField(levels=3, base_resolution=4, max_resolution=16, log2_hashmap_size=9, blob_density=3.0)
    rays = image_rays(camera_to_world(Camera(20, 10, radius=2.5)), 50.0, 6)
    seen = render_rays(field, rays, sampling_of(mode, field, 24, 16))
    assert seen.color.shape == (36, 3)
    assert seen.opacity.shape == seen.depth.shape == seen.z_variance.shape == (36,)
    assert (seen.color >= 0).all() and (seen.color <= 1 + 1e-6).all()
    assert (seen.opacity >= 0).all() and (seen.opacity <= 1 + 1e-6).all()
    assert (seen.z_variance >= 0).all()
    (seen.color.sum() + seen.opacity.sum() + seen.depth.sum() + seen.z_variance.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_step_of_gradient_changes_the_depth_as_it_says(analytic_field):
    """Gradient of the depth with respect to a density scale, against a difference quotient."""
    scale = torch.tensor(2.0, dtype=torch.float32, requires_grad=True)
    field = analytic_field(lambda points: scale * slab(1.0, -0.3, 0.3)(points))
    sampling = RaySampling(100, 50)
    render_rays(field, along_x(0.0), sampling).depth.sum().backward()
    # mean = 1/s - L e^(-sL) / (1 - e^(-sL)), L = 0.6, so d mean / ds = -1/s^2 + L^2 e^(-sL) / (1 - e^(-sL))^2.
    left = math.exp(-1.2)
    assert scale.grad.item() == pytest.approx(-1 / 4 + 0.36 * left / (1 - left) ** 2, abs=2e-3)
