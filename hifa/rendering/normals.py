"""Surface normals of a rendered depth map."""

import math

import torch
from torch import Tensor


def depth_normals(
    depth: Tensor, opacity: Tensor, directions: Tensor, max_step: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Compute normals by central differences of the points `depth * directions`; differentiable in `depth`.

    For positive depths a normal always points towards the camera: it is the cross product of the vertical and the
    horizontal difference, and both follow the pixels.

    Args:
        depth: `(n, n)` distances along the rays, world units.
        opacity: `(n, n)` in [0, 1].
        directions: `(n, n, 3)` unit ray directions, rows downwards and columns to the right. The normals have their
            axes: world axes for the rays of `image_rays`.
        max_step: Largest central difference of `depth` that still counts as one surface, world units.

    Returns:
        Unit normals `(n, n, 3)`, 0 where they are not valid, and the mask `(n, n)` of the valid ones: the pixel and
        its four neighbors are more than half opaque, and both central differences are below `max_step`.
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


MAX_SLOPE = 6.0  # change of the depth from pixel to pixel, in pixels, that is still one surface: 80 degrees


@torch.no_grad()
def visible_normals(depth: Tensor, opacity: Tensor, directions: Tensor) -> Tensor:
    """Compute a normal for every pixel that is more than half opaque, for pictures.

    Each direction of the image takes the central difference where both neighbors belong to the surface. At silhouettes
    and steps of the depth it takes the difference towards the nearer neighbor in depth, and where there is none the
    surface is taken to face the camera.

    Args:
        depth, opacity, directions: As for `depth_normals`.

    Returns:
        `(n, n, 3)` unit normals towards the camera, 0 elsewhere.
    """
    opaque = opacity > 0.5
    down = _tangents(depth, opaque, directions)
    right = _tangents(depth.T, opaque.T, directions.transpose(0, 1)).transpose(0, 1)
    normals = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1)
    return torch.where(opaque[..., None], normals, torch.zeros_like(normals))


def _tangents(depth: Tensor, opaque: Tensor, directions: Tensor) -> Tensor:
    """Tangents `(n, n, 3)` of the surface along the first axis."""
    pixel = depth[:-1] * (directions[1:] - directions[:-1]).norm(dim=-1)
    step, seen = depth.diff(dim=0), opaque[1:] & opaque[:-1]
    # By how many pixels the depth changes towards the next and from the previous one; endless without a neighbor.
    slope = torch.where(seen, step.abs() / pixel.clamp_min(1e-9), math.inf)
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
    """Central differences along the first axis, one-sided at both ends."""
    if len(directions) == 1:
        raise ValueError("Normals need a picture of at least 2 x 2 pixels, got 1 x 1.")
    return torch.cat(
        [directions[1:2] - directions[:1], directions[2:] - directions[:-2], directions[-1:] - directions[-2:-1]]
    )
