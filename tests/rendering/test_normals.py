"""Normals of depth maps against those of a sphere and of planes that are known exactly."""

import math

import pytest
import torch

from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.rendering.normals import depth_normals, visible_normals


SIZE, RADIUS = 64, 0.6


def seen_rays(camera, size=SIZE):
    rays = image_rays(camera_to_world(camera), camera.fov_deg, size)
    return rays.origins.view(size, size, 3), rays.directions.view(size, size, 3)


def sphere(camera, size=SIZE, radius=RADIUS, center=(0.0, 0.0, 0.0)):
    """Depth, opacity, directions and outward normals of a sphere; depth and normals are 0 beside it."""
    origins, directions = seen_rays(camera, size)
    offset = origins - torch.tensor(center)
    along = (offset * directions).sum(-1)
    inside = along**2 - (offset**2).sum(-1) + radius**2
    hit = inside > 0
    depth = torch.where(hit, -along - inside.clamp_min(0).sqrt(), 0)
    normals = torch.where(hit[..., None], (offset + depth[..., None] * directions) / radius, 0)
    return depth, hit.float(), directions, normals


def plane(camera, normal, size=SIZE):
    """Depth of the plane through the origin with a normal, wherever a ray meets it in front of the camera."""
    origins, directions = seen_rays(camera, size)
    depth = -(origins @ normal) / (directions @ normal)
    assert (depth > 0).all()
    return depth, directions


def degrees(first, second):
    return torch.rad2deg(torch.acos((first * second).sum(-1).clamp(-1, 1)))


CAMERAS = [Camera(0, 0), Camera(130, 35, 2.2, 50), Camera(250, -40), Camera(10, 90)]


@pytest.mark.parametrize("camera", CAMERAS)
def test_sphere(camera):
    depth, opacity, directions, truth = sphere(camera)
    normals, valid = depth_normals(depth, opacity, directions)
    assert valid.sum() > 0.8 * opacity.sum()
    assert degrees(normals[valid], truth[valid]).mean() < 2
    torch.testing.assert_close(normals.norm(dim=-1), valid.float())


@pytest.mark.parametrize("camera", CAMERAS)
def test_plane(camera):
    towards = camera_to_world(camera)[:, 3] / camera.radius
    tilted = torch.nn.functional.normalize(towards + torch.tensor([0.3, -0.2, 0.4]), dim=0)
    depth, directions = plane(camera, tilted)
    normals, valid = depth_normals(depth, torch.ones_like(depth), directions)
    assert valid.sum() == (SIZE - 2) ** 2  # all but the border
    assert degrees(normals[valid], tilted).max() < 0.2
    assert ((normals * directions).sum(-1)[valid] < 0).all()


def test_valid_needs_opaque_neighbors_and_small_steps():
    depth, directions = plane(Camera(0, 0), torch.tensor([1.0, 0.0, 0.0]), 7)
    opacity = torch.ones(7, 7)
    opacity[2, 2] = 0.5
    _, valid = depth_normals(depth, opacity, directions)
    hidden = torch.zeros(7, 7, dtype=torch.bool)
    for row, column in ((2, 2), (1, 2), (3, 2), (2, 1), (2, 3)):
        hidden[row, column] = True
    inner = torch.zeros(7, 7, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    assert torch.equal(valid, inner & ~hidden)

    depth = depth.clone()
    depth[:, 4:] += 0.5  # a step between columns 3 and 4: the central differences of both cross it
    _, valid = depth_normals(depth, torch.ones(7, 7), directions, max_step=0.3)
    step = torch.zeros(7, 7, dtype=torch.bool)
    step[:, 3:5] = True
    assert torch.equal(valid, inner & ~step)
    assert torch.equal(depth_normals(depth, torch.ones(7, 7), directions)[1], inner)


def test_gradient_of_the_depth():
    depth, opacity, directions, _ = sphere(Camera(40, 20), 16)
    generator = torch.Generator().manual_seed(0)
    rough = depth + 0.02 * torch.rand(16, 16, generator=generator)
    depth, directions = rough.double().requires_grad_(), directions.double()

    def of_depth(value):
        return depth_normals(value, opacity, directions)[0]

    assert torch.autograd.gradcheck(of_depth, depth, eps=1e-6, atol=1e-4)
    empty = torch.zeros(16, 16, dtype=torch.float64, requires_grad=True)
    of_depth(empty).sum().backward()  # no depth anywhere: no normal, and no NaN either
    assert torch.isfinite(empty.grad).all()


def test_descent_turns_a_dent_into_the_sphere():
    """A loss on the normals alone moves the depth the right way."""
    depth, opacity, directions, truth = sphere(Camera(40, 20), 32)
    dented = depth.clone()
    dented[14:18, 14:18] += 0.05
    dented.requires_grad_()

    def loss():
        normals, valid = depth_normals(dented, opacity, directions)
        return (1 - (normals * truth).sum(-1))[valid].sum()

    before, optimizer = loss().item(), torch.optim.Adam([dented], 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        assert math.isfinite(dented.grad.sum().item())
        optimizer.step()
    assert loss().item() < 0.1 * before


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_opaque_pixel_of_a_picture_has_a_normal(camera):
    depth, opacity, directions, truth = sphere(camera)
    normals = visible_normals(depth, opacity, directions)
    hit = opacity > 0.5
    torch.testing.assert_close(normals.norm(dim=-1), hit.float())
    assert (normals * directions).sum(-1)[hit].max() < 0
    assert degrees(normals[hit], truth[hit]).mean() < 4  # silhouettes included


def test_a_step_of_the_depth_is_no_slope():
    """A ball in front of a wall: neither the wall nor the ball turns sideways where they meet."""
    camera = Camera(0, 0)
    depth, opacity, directions, truth = sphere(camera, radius=0.3, center=(0.6, 0.0, 0.0))
    wall, _ = plane(camera, torch.tensor([1.0, 0.0, 0.0]))
    ball = opacity > 0.5
    normals = visible_normals(torch.where(ball, depth, wall), torch.ones_like(depth), directions)
    assert degrees(normals[~ball], torch.tensor([1.0, 0.0, 0.0])).max() < 1
    assert degrees(normals[ball], truth[ball]).mean() < 5


def test_a_single_pixel_faces_the_camera():
    depth, directions = plane(Camera(0, 0), torch.tensor([1.0, 0.0, 0.0]), 9)
    opacity = torch.zeros(9, 9)
    opacity[4, 4] = 1.0
    normals = visible_normals(depth, opacity, directions)
    assert degrees(normals[4, 4], -directions[4, 4]) < 1 and normals.count_nonzero() <= 3
