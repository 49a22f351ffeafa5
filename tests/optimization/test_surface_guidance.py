"""Guidance of the surface: its losses by hand-worked numbers, on analytic spheres, and through the step."""

import math
from dataclasses import replace

import pytest
import torch

from hifa import HiFAPipeline
from hifa.cameras import Camera
from hifa.losses import angular_von_mises_fisher_loss, curvature_loss, expected_angle, normal_loss
from hifa.multiview.given_views import GivenViews
from hifa.optimization.surface_guidance import ViewNormals, WholeView, curvature, normal_guidance
from hifa.priors.surface import SurfaceEstimate, SurfacePrior
from hifa.rendering.rays import RayOutput
from tests.helpers.runs import TINY, finish, generator, state
from tests.helpers.surfaces import CAMERA, SIZE, in_camera_axes, sphere


class Oracle(SurfacePrior):
    """Says what is true of the ball."""

    def __init__(self, camera: Camera = CAMERA):
        self.camera = camera

    def estimate(self, picture, size, timestep=0):
        normals = in_camera_axes(sphere(self.camera, size)[1], self.camera)
        return SurfaceEstimate(normals, (normals.norm(dim=-1) > 0.5).float(), torch.zeros(size, size))


def test_normal_loss_by_hand():
    up, side = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    normals, predicted = torch.stack([up, up, up, up]), torch.stack([up, side, -up, side])
    weight = torch.tensor([1.0, 1.0, 0.5, 0.0])
    assert normal_loss(normals, predicted, weight).item() == pytest.approx((0 + 1 + 0.5 * 2 + 0) / 4)


def test_curvature_loss_by_hand():
    depth = torch.zeros(4, 4)
    depth[:, 2] = 0.1  # second differences along the rows: 0.1 and -0.2, of a pixel of 0.1: 1 and -2
    everywhere = torch.ones(4, 4, dtype=torch.bool)
    each = 1 / (1 + 0.25) + 4 / (4 + 0.25)
    assert curvature_loss(depth, everywhere, 0.1, 0.5).item() == pytest.approx(4 * each / 16)
    nowhere = everywhere.clone()
    nowhere[:, 2] = False
    assert curvature_loss(depth, nowhere, 0.1, 0.5).item() == 0
    plane = torch.arange(4.0)[None] + 2 * torch.arange(4.0)[:, None]
    assert curvature_loss(plane, everywhere, 0.1, 0.5).item() == pytest.approx(0, abs=1e-6)


def test_a_step_of_the_depth_costs_a_constant_and_has_no_gradient():
    depth = torch.zeros(6, 6)
    depth[:, 3:] = 5.0
    depth.requires_grad_()
    loss = curvature_loss(depth, torch.ones(6, 6, dtype=torch.bool), 0.05, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 6 / 36, rel=1e-3) and depth.grad.abs().max() < 1e-5


def test_angular_likelihood_is_normalized_and_its_mean_is_the_expected_angle():
    angle = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    for kappa in (0.5, 3.0, 20.0):
        k = torch.full_like(angle, kappa)
        # The density over the sphere of directions, integrated over the circle at each angle.
        density = torch.exp(-angular_von_mises_fisher_loss(angle, k)) * torch.sin(angle)
        mass = torch.trapezoid(density, angle)
        assert mass.item() == pytest.approx(1, rel=1e-4)
        mean = torch.trapezoid(density * angle, angle) / mass
        assert expected_angle(k[:1]).item() == pytest.approx(mean.item(), rel=1e-4)
    assert expected_angle(torch.zeros(1)).item() == pytest.approx(math.pi / 2)


def test_the_true_normals_of_a_ball_cost_nothing_and_others_do():
    view, normals = sphere()
    inside = (normals.norm(dim=-1) > 0.5).float()
    right = normal_guidance(view, SurfaceEstimate(in_camera_axes(normals), inside))
    mirrored = normal_guidance(view, SurfaceEstimate(in_camera_axes(normals) * torch.tensor([-1.0, 1, 1]), inside))
    unsure = normal_guidance(view, SurfaceEstimate(in_camera_axes(normals), 0 * inside))
    assert right < 0.01 * inside.mean() and mirrored > 0.2 * inside.mean() and unsure == 0


def test_the_gradient_moves_the_depth_towards_the_ball_and_leaves_opacity_and_color():
    view, normals = sphere()
    estimate = SurfaceEstimate(in_camera_axes(normals), (normals.norm(dim=-1) > 0.5).float())
    bumps = 0.02 * torch.sin(torch.arange(SIZE * SIZE) * 0.9)
    depth = (view.rendered.depth + bumps * view.rendered.opacity).requires_grad_()
    opacity, color = view.rendered.opacity.clone().requires_grad_(), view.rendered.color.clone().requires_grad_()
    optimizer, losses = torch.optim.Adam([depth], 1e-3), []
    for _ in range(150):
        lumpy = WholeView(CAMERA, view.rays, replace(view.rendered, depth=depth, opacity=opacity, color=color), SIZE)
        loss = normal_guidance(lumpy, estimate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert opacity.grad is None and color.grad is None


def test_a_ball_bends_less_than_a_lumpy_one():
    view, _ = sphere()
    bumps = 0.05 * torch.sin(torch.arange(SIZE * SIZE) * 0.9) * view.rendered.opacity
    lumpy = WholeView(CAMERA, view.rays, replace(view.rendered, depth=view.rendered.depth + bumps), SIZE)
    assert curvature(view, 0.5) < 0.4 * curvature(lumpy, 0.5)


def ball_views(size: int = 32) -> tuple[GivenViews, list[torch.Tensor]]:
    cameras = tuple(Camera(azimuth, 20) for azimuth in (0, 90, 180, 270))
    masks = torch.stack([sphere(c, size)[0].rendered.opacity.view(size, size) for c in cameras])
    color = (255 - 200 * masks[..., None]).byte().expand(-1, -1, -1, 3).contiguous()
    return GivenViews(color, (255 * masks).byte(), cameras)


def test_corners_of_given_views_are_a_pixel_with_the_one_beside_and_the_one_below():
    views = ball_views()
    batch = views.sample_corners(50, 2, generator())
    here, right, below = batch.index.chunk(3)
    assert torch.equal(right, here + 2) and torch.equal(below, here + 2 * views.size)
    assert (here % views.size).max() < views.size - 2 and (here // views.size % views.size).max() < views.size - 2
    assert torch.equal(batch.mask, views.mask.view(-1)[batch.index] / 255)
    assert set((here // views.size**2).tolist()) == {0, 1, 2, 3}


def test_normals_of_given_views_are_compared_in_the_world():
    views = ball_views()

    class Model(SurfacePrior):
        cameras = iter(views.cameras)

        def estimate(self, picture, size, timestep=0):
            assert tuple(picture.shape) == (1, 3, 32, 32) and timestep == 0
            return Oracle(next(self.cameras)).estimate(picture, size)

    read = ViewNormals.read(views, Model())
    batch = views.sample_corners(4000, read.stride, generator())
    depth = torch.cat([sphere(camera, views.size)[0].rendered.depth for camera in views.cameras])[batch.index]
    zero = torch.zeros(len(depth))
    rendered = RayOutput(zero[:, None], (depth > 0).float(), depth, zero, zero, zero, zero[:, None][:, :0])
    lumpy = replace(rendered, depth=depth + 0.03 * torch.rand(len(depth), generator=generator()))
    assert read.loss(batch, rendered) < 0.01 and read.loss(batch, lumpy) > 5 * read.loss(batch, rendered)


def test_normal_guidance_is_the_same_with_deferred_backpropagation(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    pipe._surfaces.published = Oracle()
    config = replace(TINY, lambda_normal=1.0, lambda_curvature=0.3, num_inference_steps=2, regularizer_warmup=0.0)
    whole, chunks = (
        finish(pipe, pipe.start("a red ball", config=config, generator=generator(), rays_per_chunk=chunk))
        for chunk in (2**13, 50)
    )
    assert whole.losses[0]["normal"] > 0 and whole.losses[0]["curvature"] > 0
    torch.testing.assert_close(state(whole), state(chunks), rtol=1e-3, atol=1e-3)


def test_normals_are_looked_at_every_so_many_steps(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe._surfaces.published = Oracle()
    config = replace(TINY, lambda_normal=1.0, normal_period=2)
    run = finish(pipe, pipe.start("a red ball", config=config, generator=generator()))
    assert ["normal" in losses for losses in run.losses] == [True, False, True]


def test_a_weight_without_a_model_is_refused_before_work(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    for name in ("lambda_normal", "lambda_image_normal"):
        with pytest.raises(ValueError, match=f"{name} needs a normal model"):
            pipe.start("a red ball", config=replace(TINY, **{name: 1.0}))


def test_a_preset_with_normals_reconstructs_views_without_a_prompt():
    """Nothing is distilled then, and nothing is refused."""
    pipe = HiFAPipeline.from_pretrained()
    config = replace(TINY, lambda_normal=1.0, given_rays=32)
    run = pipe.start(None, views=ball_views(), config=config, generator=generator())
    losses = next(pipe.advance(run)).losses
    assert "given_image" in losses and "normal" not in losses
