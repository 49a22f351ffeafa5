"""Views of an analytic ball, with its true normals."""

import torch

from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.optimization.surface_guidance import WholeView
from hifa.rendering.rays import RayOutput


CAMERA, SIZE, BALL = Camera(30, 20), 48, 0.5


def sphere(camera: Camera = CAMERA, size: int = SIZE, radius: float = BALL) -> tuple[WholeView, torch.Tensor]:
    """Return a view of a ball at the origin, and its true normals `(n, n, 3)` in world axes, 0 outside."""
    rays = image_rays(camera_to_world(camera), camera.fov_deg, size)
    along = -(rays.origins * rays.directions).sum(-1)
    inner = radius**2 - ((rays.origins**2).sum(-1) - along**2)
    hit = inner > 0
    depth = torch.where(hit, along - inner.clamp_min(0).sqrt(), torch.zeros_like(along))
    points = rays.origins + depth[:, None] * rays.directions
    normals = torch.where(hit[:, None], points / radius, torch.zeros_like(points))
    zero = torch.zeros(len(depth))
    rendered = RayOutput(torch.rand(len(depth), 3), hit.float(), depth, zero, zero, zero, torch.zeros(len(depth), 0))
    return WholeView(camera, rays, rendered, size), normals.view(size, size, 3)


def in_camera_axes(normals: torch.Tensor, camera: Camera = CAMERA) -> torch.Tensor:
    return normals @ camera_to_world(camera)[:, :3]
