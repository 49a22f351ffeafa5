"""Whole images in bounded memory: gradients by deferred backpropagation, and pictures without gradients."""

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
    """Render rays, evaluate a loss on all rays at once, and add its gradients to the parameters of the field.

    Up to `chunk` rays are rendered in one ordinary pass. For more rays, backpropagation is deferred (Zhang et al.
    2022, "ARF", section 3.4). First, all rays are rendered without a graph. The loss then gives the gradient of every
    ray. Finally, chunks of rays are rendered again with a graph, which propagates the gradients to the parameters.
    The peak memory is that of one chunk. The gradients equal those of a single pass.

    Args:
        field: The radiance field.
        rays: Rays with unit directions.
        sampling: See `RaySampling`.
        loss_of: Function from the output of all rays to a scalar. It is called once.
        background: See `render_rays`.
        offsets: See `render_rays`.
        chunk: Largest number of rays whose graph is kept at a time.

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
    """Rendered view with H = W. Disparity and normals are computed on first access.

    Args:
        color: `(H, W, 3)` RGB in [0, 1].
        opacity: `(H, W)` in [0, 1].
        depth: `(H, W)` distance along the ray, world units; 0 where the ray meets nothing.
        z_variance: `(H, W)` squared world units.
        directions: `(H, W, 3)` unit world directions of the rays.
    """

    color: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    directions: Tensor

    @cached_property
    def disparity(self) -> Tensor:
        """Return 1 / depth, `(H, W)`; 0 where the ray meets nothing."""
        return disparity(self.depth)

    @cached_property
    def normals(self) -> Tensor:
        """Return unit outward world normals `(H, W, 3)` of the rendered depth; 0 where opacity is at most 0.5."""
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
    """Render one view of a field that is still being optimized, without gradients and with regular sampling.

    For a finished field, `viewing.Viewer` is faster.

    Args:
        field: The radiance field.
        camera: Camera of the view.
        size: Height and width in pixels.
        sampling: See `RaySampling`.
        background: See `render_rays`.
        chunk: Number of rays that are rendered at a time, which bounds memory.
    """
    device = field.grid.table.device
    rays = image_rays(camera_to_world(camera).to(device), camera.fov_deg, size)
    parts = [render_rays(field, *part) for part in _chunks(rays, sampling, background, None, chunk)]
    return picture_of(concatenate(parts), rays, size)


def picture_of(rendered: RayOutput, rays: Rays, size: int) -> Picture:
    """Reshape the output of all rays of a square image to a `Picture`."""
    square = (size, size)
    return Picture(
        color=rendered.color.clamp(0, 1).view(*square, 3),
        opacity=rendered.opacity.clamp(0, 1).view(square),
        depth=rendered.depth.view(square),
        z_variance=rendered.z_variance.view(square),
        directions=rays.directions.view(*square, 3),
    )


def _chunks(rays: Rays, sampling: RaySampling, background: Tensor | None, offsets: Tensor | None, chunk: int):
    for start in range(0, len(rays), chunk):
        part = slice(start, start + chunk)
        yield rays[part], sampling, background, None if offsets is None else offsets[part]


def concatenate(parts: list[RayOutput]) -> RayOutput:
    """Concatenate the outputs of chunks of rays."""
    return RayOutput(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))
