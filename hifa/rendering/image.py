"""Whole images in bounded memory: gradients by deferred backpropagation, and pictures to look at."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world, image_rays
from ..field import RadianceField
from .rays import RayOutput, RaySampling, render_rays
from .volume import disparity


def backpropagate(
    field: RadianceField,
    rays: Rays,
    sampling: RaySampling,
    loss_of: Callable[[RayOutput], Tensor],
    *,
    background: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int,
) -> Tensor:
    """Render, evaluate a loss on all rays at once, and add its gradient to the field's parameters.

    Up to `chunk` rays this is one ordinary pass. Beyond, backpropagation is deferred (Zhang et al. 2022, "ARF",
    section 3.4): the image is rendered without a graph, the loss gives the gradient of every ray, and chunks are
    rendered again with a graph to push it into the parameters. Memory is that of one chunk; gradients are the same.

    Args:
        loss_of: From all rays' output to a scalar. It is called once.
        background, offsets: See `render_rays`.
        chunk: Rays that are held with their graph at a time.

    Returns:
        The loss, detached.
    """
    if len(rays) <= chunk:
        loss = loss_of(render_rays(field, rays, sampling, background, offsets))
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        parts = [render_rays(field, *part) for part in _chunks(rays, sampling, background, offsets, chunk)]
    leaves = _concatenate(parts).map(lambda value: value.requires_grad_())
    loss = loss_of(leaves)
    loss.backward()
    start = 0
    for part in _chunks(rays, sampling, background, offsets, chunk):
        output, end = render_rays(field, *part), start + len(part[0])
        pairs = [(getattr(output, name), getattr(leaves, name).grad) for name in vars(leaves)]
        pairs = [(value, grad[start:end]) for value, grad in pairs if grad is not None and value.requires_grad]
        if pairs:
            torch.autograd.backward([value for value, _ in pairs], [grad for _, grad in pairs])
        start = end
    return loss.detach()


@dataclass(frozen=True)
class Picture:
    """A rendered view; H = W.

    Args:
        colour: `(H, W, 3)` RGB in [0, 1].
        opacity: `(H, W)` in [0, 1].
        depth: `(H, W)` distance along the ray, world units; 0 where there is nothing.
        disparity: `(H, W)` 1 / depth; 0 where there is nothing.
        normals: `(H, W, 3)` unit outward world normals; 0 where there is nothing.
        z_variance: `(H, W)` squared world units.
    """

    colour: Tensor
    opacity: Tensor
    depth: Tensor
    disparity: Tensor
    normals: Tensor
    z_variance: Tensor


@torch.no_grad()
def render_picture(
    field: RadianceField,
    camera: Camera,
    size: int,
    sampling: RaySampling,
    background: Tensor | None = None,
    chunk: int = 2**14,
) -> Picture:
    """Render one view for looking at: regular sampling, no gradients, memory bounded by `chunk` rays."""
    device = field.grid.table.device
    rays = image_rays(camera_to_world(camera).to(device), camera.fov_deg, size)
    parts = [render_rays(field, *part) for part in _chunks(rays, sampling, background, None, chunk)]
    seen = _concatenate(parts)
    normals = surface_normals(field, rays, seen)
    square = (size, size)
    return Picture(
        colour=seen.colour.clamp(0, 1).view(*square, 3),
        opacity=seen.opacity.clamp(0, 1).view(square),
        depth=seen.depth.view(square),
        disparity=disparity(seen.depth).view(square),
        normals=normals.view(*square, 3),
        z_variance=seen.z_variance.view(square),
    )


@torch.no_grad()
def surface_normals(field: RadianceField, rays: Rays, seen: RayOutput, step: float = 0.02) -> Tensor:
    """Outward unit normals `(n_rays, 3)` at the expected depth, by central differences.

    They are those of the opacity of a stretch of length `step`, 1 - exp(-density step), and not of the density: that
    goes on varying inside the object, where no ray sees it.

    Args:
        step: Half the distance of the differences, world units.
    """
    normals = torch.zeros_like(rays.directions)
    hit = torch.nonzero(seen.opacity > 0.5)[:, 0]
    points = rays.origins[hit] + rays.directions[hit] * seen.depth[hit, None]
    for axis, shift in enumerate(step * torch.eye(3, device=points.device)):
        ahead, behind = (torch.exp(-step * field.density(points + side * shift)) for side in (1, -1))
        normals[hit, axis] = ahead - behind
    return torch.nn.functional.normalize(normals, dim=-1)


def _chunks(rays: Rays, sampling: RaySampling, background: Tensor | None, offsets: Tensor | None, chunk: int):
    for start in range(0, len(rays), chunk):
        part = slice(start, start + chunk)
        yield rays[part], sampling, background, None if offsets is None else offsets[part]


def _concatenate(parts: list[RayOutput]) -> RayOutput:
    return RayOutput(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))
