"""Surface normals of a rendered depth map."""

import math

import torch
from torch import Tensor


def depth_normals(
    depth: Tensor, opacity: Tensor, directions: Tensor, max_step: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Compute normals by central differences of the points `depth * directions`. Differentiable in `depth`.

    A normal is the cross product of the vertical and the horizontal difference. The differences follow the pixel
    order, so normals always point toward the camera for positive depths.

    Args:
        depth: `(n, n)` distances along the rays, world units.
        opacity: `(n, n)` in [0, 1].
        directions: `(n, n, 3)` unit ray directions, rows downward and columns to the right. Normals are in the axes
            of the directions, which are world axes for the rays of `image_rays`.
        max_step: Upper limit of the central differences of `depth` within one surface, world units.

    Returns:
        Unit normals `(n, n, 3)`, 0 where they are not valid, and the mask `(n, n)` of valid normals. A normal is valid
        if the pixel and its four neighbors are more than half opaque and both central differences are below
        `max_step`.
    """
    inner = slice(1, -1)
    points = depth[..., None] * directions
    down, right = points[2:, inner] - points[:-2, inner], points[inner, 2:] - points[inner, :-2]
    normals = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    opaque, fixed = opacity > 0.5, depth.detach()
    valid = opaque[inner, inner] & opaque[2:, inner] & opaque[:-2, inner] & opaque[inner, 2:] & opaque[inner, :-2]
    valid &= (fixed[2:, inner] - fixed[:-2, inner]).abs() < max_step
    valid &= (fixed[inner, 2:] - fixed[inner, :-2]).abs() < max_step
    normals = torch.where(valid[..., None], normals, torch.zeros_like(normals))
    border = (1, 1, 1, 1)
    return torch.nn.functional.pad(normals, (0, 0, *border)), torch.nn.functional.pad(valid, border)


MAX_SLOPE = 6.0  # limit of the depth change per pixel, in pixel widths, within one surface: 80 degrees


@torch.no_grad()
def visible_normals(depth: Tensor, opacity: Tensor, directions: Tensor) -> Tensor:
    """Compute a normal for every pixel that is more than half opaque, for display.

    Along each axis of the image, the central difference is used where both neighbors belong to the surface. At
    silhouettes and depth steps, the difference to the neighbor with the smaller depth change is used. If no neighbor
    belongs to the surface, the surface is assumed to face the camera.

    Args:
        depth: See `depth_normals`.
        opacity: See `depth_normals`.
        directions: See `depth_normals`.

    Returns:
        `(n, n, 3)` unit normals toward the camera, 0 elsewhere.
    """
    opaque = opacity > 0.5
    down = _tangents(depth, opaque, directions)
    right = _tangents(depth.T, opaque.T, directions.transpose(0, 1)).transpose(0, 1)
    normals = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    return torch.where(opaque[..., None], normals, torch.zeros_like(normals))


def _tangents(depth: Tensor, opaque: Tensor, directions: Tensor) -> Tensor:
    """Return tangents `(n, n, 3)` of the surface along the first axis."""
    pixel = depth[:-1] * (directions[1:] - directions[:-1]).norm(dim=-1)
    step, valid = depth.diff(dim=0), opaque[1:] & opaque[:-1]
    # Depth change to the next and from the previous pixel, in pixel widths; infinite without an opaque neighbor.
    slope = torch.where(valid, step.abs() / pixel.clamp_min(1e-9), math.inf)
    ahead = torch.nn.functional.pad(slope, (0, 0, 0, 1), value=math.inf)
    behind = torch.nn.functional.pad(slope, (0, 0, 1, 0), value=math.inf)
    points = depth[..., None] * directions
    difference = points.diff(dim=0)
    flat = depth[..., None] * _differences(directions)
    both = (ahead < MAX_SLOPE) & (behind < MAX_SLOPE)
    forward = torch.nn.functional.pad(difference, (0, 0, 0, 0, 0, 1))
    backward = torch.nn.functional.pad(difference, (0, 0, 0, 0, 1, 0))
    one = torch.where((ahead < behind)[..., None], forward, backward)
    alone = torch.minimum(ahead, behind) >= MAX_SLOPE
    return torch.where(both[..., None], forward + backward, torch.where(alone[..., None], flat, one))


def _differences(directions: Tensor) -> Tensor:
    """Return central differences along the first axis, one-sided at both ends."""
    if len(directions) == 1:
        raise ValueError("Normals need a picture of at least 2 x 2 pixels, got 1 x 1.")
    return torch.cat(
        [directions[1:2] - directions[:1], directions[2:] - directions[:-2], directions[-1:] - directions[-2:-1]]
    )
