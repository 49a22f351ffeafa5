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
