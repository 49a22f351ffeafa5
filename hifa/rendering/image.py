"""Whole images in bounded memory: gradients by deferred backpropagation, and pictures to look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..cameras import Camera, Rays, camera_to_world, image_rays
from ..field import RadianceField
from .normals import visible_normals
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
    leaves = concatenate(parts).map(lambda value: value.requires_grad_())
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
    """A rendered view; H = W. Disparity and normals are computed when they are first asked for.

    Args:
        colour: `(H, W, 3)` RGB in [0, 1].
        opacity: `(H, W)` in [0, 1].
        depth: `(H, W)` distance along the ray, world units; 0 where there is nothing.
        z_variance: `(H, W)` squared world units.
        directions: `(H, W, 3)` unit world directions of the rays.
    """

    colour: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    directions: Tensor

    @cached_property
    def disparity(self) -> Tensor:
        """`(H, W)` 1 / depth; 0 where there is nothing."""
        return disparity(self.depth)

    @cached_property
    def normals(self) -> Tensor:
        """`(H, W, 3)` unit outward world normals of the rendered depth; 0 where it is not more than half opaque."""
        return visible_normals(self.depth, self.opacity, self.directions)


@torch.no_grad()
def render_picture(
    field: RadianceField,
    camera: Camera,
    size: int,
    sampling: RaySampling,
    background: Tensor | None = None,
    chunk: int = 2**14,
) -> Picture:
    """Render one view of a field that still changes: regular sampling, no gradients, memory bounded by `chunk` rays.

    For a finished field `viewing.Viewer` is faster.
    """
    device = field.grid.table.device
    rays = image_rays(camera_to_world(camera).to(device), camera.fov_deg, size)
    parts = [render_rays(field, *part) for part in _chunks(rays, sampling, background, None, chunk)]
    return picture_of(concatenate(parts), rays, size)


def picture_of(seen: RayOutput, rays: Rays, size: int) -> Picture:
    """The picture that the rays of an image have seen."""
    square = (size, size)
    return Picture(
        colour=seen.colour.clamp(0, 1).view(*square, 3),
        opacity=seen.opacity.clamp(0, 1).view(square),
        depth=seen.depth.view(square),
        z_variance=seen.z_variance.view(square),
        directions=rays.directions.view(*square, 3),
    )


def _chunks(rays: Rays, sampling: RaySampling, background: Tensor | None, offsets: Tensor | None, chunk: int):
    for start in range(0, len(rays), chunk):
        part = slice(start, start + chunk)
        yield rays[part], sampling, background, None if offsets is None else offsets[part]


def concatenate(parts: list[RayOutput]) -> RayOutput:
    """The output of all rays from that of chunks."""
    return RayOutput(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))
