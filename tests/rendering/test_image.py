"""Whole images: deferred backpropagation gives the gradients of one pass; pictures of a ball of known shape."""

from dataclasses import replace

import pytest
import torch

from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.field import RadianceField
from hifa.losses import monotonicity_loss, opacity_entropy_loss, z_entropy_loss, z_variance_loss
from hifa.rendering.density_grid import DensityGrid
from hifa.rendering.image import backpropagate, render_picture
from hifa.rendering.rays import RaySampling, render_rays


SIZE = 10  # 100 rays


def small_field() -> RadianceField:
    field = RadianceField(
        levels=4, base_resolution=4, max_resolution=24, log2_hashmap_size=9, hidden_dim=16, view_bands=2,
        blob_density=4.0, blob_radius=0.4,
    )  # fmt: skip
    with torch.no_grad():  # structure, so that every part of the field matters
        field.grid.table.copy_(torch.randn(field.grid.table.shape, generator=torch.Generator().manual_seed(1)))
    return field


def sampling_of(mode: str, field: RadianceField) -> RaySampling:
    if mode == "two passes":
        return RaySampling(16, 8)
    grid = DensityGrid(16, field.bound)
    grid.refresh(field)
    return RaySampling(16, 8, grid=grid, min_opacity=0.05)


def loss_of(seen):
    """Color, z-variance, opacity and depth; the first term couples all rays."""
    target = torch.linspace(0, 1, seen.color.numel()).view_as(seen.color)
    return (
        10 * (seen.color.mean(0) ** 2).sum()
        + ((seen.color - target) ** 2).sum()
        + 3 * z_variance_loss(seen.z_variance, seen.opacity)
        + opacity_entropy_loss(seen.opacity)
        + 0.1 * seen.depth.sum()
    )


def gradients(field, sampling, chunk, loss=loss_of, background=None, radius=2.5):
    rays = image_rays(camera_to_world(Camera(30, 20, radius=radius)), 50.0, SIZE)
    offsets = torch.rand(len(rays), 2, generator=torch.Generator().manual_seed(2))
    field.zero_grad(set_to_none=True)
    value = backpropagate(field, rays, sampling, loss, background=background, offsets=offsets, chunk=chunk)
    assert not value.requires_grad
    return value, {name: None if p.grad is None else p.grad.clone() for name, p in field.named_parameters()}


@pytest.mark.parametrize("mode", ["two passes", "density grid"])
@pytest.mark.parametrize("chunk", [50, 20, 99, 33, 7])  # some divide 100 rays, some do not
@pytest.mark.parametrize("background", [None, torch.tensor([0.7, 0.8, 0.9])])
def test_deferred_backpropagation_gives_the_same_gradients(mode, chunk, background):
    field = small_field()
    sampling = sampling_of(mode, field)
    loss, expected = gradients(field, sampling, 100, background=background)
    deferred_loss, actual = gradients(field, sampling, chunk, background=background)
    torch.testing.assert_close(deferred_loss, loss)
    for name, value in expected.items():
        if value is None:  # the background network, when the background is flat
            assert name.startswith("background_net") and background is not None and actual[name] is None
            continue
        assert value.abs().max() > 0, name
        torch.testing.assert_close(
            actual[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=lambda m: f"{name}: {m}"
        )


@pytest.mark.parametrize("mode", ["two passes", "density grid"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda seen: (seen.color**2).sum(),
        lambda seen: z_variance_loss(seen.z_variance, seen.opacity),
        lambda seen: seen.opacity.sum(),
        lambda seen: seen.depth.sum(),
    ],
    ids=["color", "z-variance", "opacity", "depth"],
)
def test_deferred_gradients_of_each_output_alone(mode, loss):
    field = small_field()
    sampling = sampling_of(mode, field)
    _, expected = gradients(field, sampling, 100, loss)
    _, actual = gradients(field, sampling, 30, loss)
    for name, value in expected.items():
        value = torch.zeros(()) if value is None else value
        other = torch.zeros(()) if actual[name] is None else actual[name]
        atol = 1e-5 * value.abs().max().item()
        torch.testing.assert_close(other.expand_as(value), value.expand_as(other), rtol=1e-4, atol=atol)


def test_chunks_that_see_only_a_flat_background_are_fine():
    # From far away only the middle rows meet the cube; chunks of one row above and below have nothing to train.
    field = small_field()
    sampling = sampling_of("density grid", field)
    flat = torch.tensor([0.5, 0.5, 0.5])
    _, expected = gradients(field, sampling, 100, background=flat, radius=9)
    _, actual = gradients(field, sampling, 10, background=flat, radius=9)
    table = "grid.table"
    torch.testing.assert_close(actual[table], expected[table], rtol=1e-4, atol=1e-5 * expected[table].abs().max())


@pytest.mark.parametrize("mode", ["two passes", "density grid"])
def test_density_along_rays_is_kept_on_demand_and_has_the_same_gradient_in_chunks(mode):
    field = small_field()
    sampling = sampling_of(mode, field)
    rays = image_rays(camera_to_world(Camera(30, 20)), 50.0, SIZE)
    assert render_rays(field, rays, sampling).density.shape == (100, 0)
    sampling = replace(sampling, keep_density=True)
    density = render_rays(field, rays, sampling).density
    assert density.shape == (100, 8 if sampling.grid else 24) and (density >= 0).all() and density.any()

    def loss(seen):
        return monotonicity_loss(seen.density)

    (expected, grads), (value, chunked) = (gradients(field, sampling, chunk, loss) for chunk in (100, 30))
    table = "grid.table"
    assert value == pytest.approx(expected.item(), rel=1e-5) and grads[table].abs().max() > 0
    torch.testing.assert_close(chunked[table], grads[table], rtol=1e-4, atol=1e-5 * grads[table].abs().max())


@pytest.mark.parametrize("mode", ["two passes", "density grid"])
def test_entropy_along_rays_is_there_on_demand_and_has_the_same_gradient_in_chunks(mode):
    field = small_field()
    sampling = sampling_of(mode, field)
    rays = image_rays(camera_to_world(Camera(30, 20)), 50.0, SIZE)
    assert not render_rays(field, rays, sampling).z_entropy.any()
    sampling = replace(sampling, keep_entropy=True)
    seen = render_rays(field, rays, sampling)
    assert seen.z_entropy.shape == (100,) and seen.z_entropy[seen.opacity > 0.5].all()
    assert not seen.z_entropy[seen.opacity == 0].any() and torch.isfinite(seen.z_entropy).all()

    def loss(seen):
        return z_entropy_loss(seen.z_entropy, seen.opacity)

    (expected, grads), (value, chunked) = (gradients(field, sampling, chunk, loss) for chunk in (100, 30))
    table = "grid.table"
    assert value == pytest.approx(expected.item(), rel=1e-5) and grads[table].abs().max() > 0
    torch.testing.assert_close(chunked[table], grads[table], rtol=1e-4, atol=1e-5 * grads[table].abs().max())


@pytest.mark.parametrize("mode", ["two passes", "density grid"])
def test_distortion_of_rays_is_there_on_demand_and_has_the_same_gradient_in_chunks(mode):
    field = small_field()
    sampling = sampling_of(mode, field)
    rays = image_rays(camera_to_world(Camera(30, 20)), 50.0, SIZE)
    assert not render_rays(field, rays, sampling).distortion.any()
    sampling = replace(sampling, keep_distortion=True)
    seen = render_rays(field, rays, sampling)
    assert seen.distortion.shape == (100,) and (seen.distortion[seen.opacity > 0.5] > 0).all()
    assert not seen.distortion[seen.opacity == 0].any() and torch.isfinite(seen.distortion).all()

    def loss(seen):
        return seen.distortion.mean()

    (expected, grads), (value, chunked) = (gradients(field, sampling, chunk, loss) for chunk in (100, 30))
    table = "grid.table"
    assert value == pytest.approx(expected.item(), rel=1e-5) and grads[table].abs().max() > 0
    torch.testing.assert_close(chunked[table], grads[table], rtol=1e-4, atol=1e-5 * grads[table].abs().max())


@pytest.mark.parametrize("chunk", [100, 30])
def test_an_image_without_an_object_is_fine(chunk):
    field = small_field()
    sampling = RaySampling(16, 8, grid=DensityGrid(8, 1.0), min_opacity=0.01)  # an empty grid: no ray is live
    loss, grads = gradients(field, sampling, chunk)
    assert torch.isfinite(loss)
    assert all(value is None or torch.isfinite(value).all() for value in grads.values())
    assert grads["background_net.0.weight"].abs().max() > 0


@pytest.mark.parametrize("chunk", [100, 30])
def test_gradients_are_added_and_the_loss_is_asked_once(chunk):
    field, calls = small_field(), []
    sampling = RaySampling(16, 8)
    rays = image_rays(camera_to_world(Camera(30, 20)), 50.0, SIZE)

    def counted(seen):
        calls.append(len(seen.opacity))
        return loss_of(seen)

    backpropagate(field, rays, sampling, counted, chunk=chunk)
    once = field.grid.table.grad.clone()
    backpropagate(field, rays, sampling, counted, chunk=chunk)
    torch.testing.assert_close(field.grid.table.grad, 2 * once)
    assert calls == [100, 100]


def test_deferred_backpropagation_never_holds_more_than_a_chunk():
    held = []

    class Watched(RadianceField):
        def encode(self, points):
            if torch.is_grad_enabled():
                held.append(len(points))
            return super().encode(points)

    field = Watched(levels=2, base_resolution=4, max_resolution=8, log2_hashmap_size=8)
    rays = image_rays(camera_to_world(Camera(30, 20)), 50.0, SIZE)
    backpropagate(field, rays, RaySampling(16, 8), lambda seen: seen.color.sum(), chunk=30)
    assert max(held) <= 30 * 16 and sum(held) == 100 * (16 + 8)


RADIUS, WIDTH = 0.5, 0.03


@pytest.fixture
def soft_ball(analytic_field):
    """A ball with a soft rim, so that its density has a gradient everywhere near the surface."""
    return analytic_field(
        lambda points: 60 * torch.sigmoid((RADIUS - points.norm(dim=-1)) / WIDTH), color=(0.8, 0.2, 0.1)
    )


def test_picture_of_a_ball(soft_ball):
    camera, size = Camera(30, 20, radius=2.5, fov_deg=40), 32
    picture = render_picture(soft_ball, camera, size, RaySampling(128, 64))
    rays = image_rays(camera_to_world(camera), camera.fov_deg, size)
    nearest = rays.origins - (rays.origins * rays.directions).sum(-1, keepdim=True) * rays.directions
    impact = nearest.norm(dim=-1).view(size, size)
    inner, outer = impact < 0.8 * RADIUS, impact > RADIUS + 10 * WIDTH
    assert inner.sum() > 50 and outer.sum() > 50
    # Moments of the depth by plain quadrature in steps of half a thousandth.
    z = torch.linspace(1.5, 3.5, 4001)
    hits = rays[inner.view(-1)]
    points = hits.origins[:, None] + hits.directions[:, None] * z[:, None]
    optical = soft_ball.density_at(points.view(-1, 3)).view(len(hits), -1) * (z[1] - z[0])
    weights = torch.exp(optical - torch.cumsum(optical, -1)) * (1 - torch.exp(-optical))
    depth = (weights * z).sum(-1)
    torch.testing.assert_close(picture.opacity[inner], torch.ones(len(hits)), rtol=0, atol=1e-3)
    torch.testing.assert_close(picture.depth[inner], depth, rtol=0, atol=3e-3)
    variance = (weights * (z - depth[:, None]) ** 2).sum(-1)
    torch.testing.assert_close(picture.z_variance[inner], variance, rtol=0.1, atol=1e-5)
    torch.testing.assert_close(picture.disparity[inner], 1 / picture.depth[inner])
    surface = hits.origins + hits.directions * picture.depth[inner][:, None]
    outward = surface / surface.norm(dim=-1, keepdim=True)
    # Differences of pixels that are a tenth of the radius wide: within 3.6 degrees.
    assert ((picture.normals[inner] * outward).sum(-1) > 0.998).all()
    red, behind = torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.3, 0.4, 0.5])
    assert (picture.color[inner] - red).abs().max() < 0.01 and (picture.color[outer] - behind).abs().max() < 0.01
    assert (picture.opacity[outer] < 1e-2).all() and (picture.normals[outer] == 0).all()


def test_picture_shapes_units_and_graph(analytic_field):
    field = analytic_field(lambda points: 20.0 * (points.norm(dim=-1) < RADIUS))  # nothing at all in the corners
    picture = render_picture(field, Camera(0, 0), 8, RaySampling(16, 8), background=torch.tensor([1.0, 1.0, 1.0]))
    for name in ("color", "normals"):
        assert getattr(picture, name).shape == (8, 8, 3)
    for name in ("opacity", "depth", "disparity", "z_variance"):
        assert getattr(picture, name).shape == (8, 8)
    assert not picture.color.requires_grad
    corner = (0, 0)
    assert torch.equal(picture.color[corner], torch.ones(3))
    assert picture.depth[corner] == picture.disparity[corner] == picture.opacity[corner] == 0
    lengths = picture.normals.norm(dim=-1)
    assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()


def test_picture_does_not_depend_on_the_chunk(soft_ball):
    camera, sampling = Camera(30, 20), RaySampling(32, 16)
    whole, parts = (render_picture(soft_ball, camera, 12, sampling, chunk=chunk) for chunk in (144, 37))
    for name in vars(whole):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_picture_and_rays_agree(soft_ball):
    camera, sampling = Camera(30, 20), RaySampling(32, 16)
    picture = render_picture(soft_ball, camera, 12, sampling)
    seen = render_rays(soft_ball, image_rays(camera_to_world(camera), camera.fov_deg, 12), sampling)
    torch.testing.assert_close(picture.color, seen.color.view(12, 12, 3).clamp(0, 1))
    torch.testing.assert_close(picture.depth, seen.depth.view(12, 12))
