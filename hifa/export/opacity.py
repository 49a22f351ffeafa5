"""Solid that is visible in renders of a field: soft parts are included, and hollows that no camera sees are filled.

A level set of the density misses soft parts and exposes hollows. Renders integrate the density along rays, and so does
this module. The optical depth of a path is the integral of the density along the path. An optical depth of log 2 dims
light to a half.
"""

import math
from typing import cast

import numpy as np
from scipy import ndimage

from .opacity_cpu import sweep


DIMMED = 0.07  # optical depth from outside at which the surface is placed
OPAQUE = 0.6  # smallest optical depth of a line through the solid; renders are half opaque at log 2
CLOSING = 0.08  # radius of the ball that closes holes, as a fraction of half the side of the cube
CLEAR_DEPTH, DARK_DEPTH = 0.02, 2.0  # optical depths from outside between which the surface may lie
MOST_PER_CELL = 8.0  # upper limit of the optical depth of a cell; a higher value is as opaque, but makes sums inexact


def solid_level(grid: np.ndarray, bound: float) -> np.ndarray:
    """Return a level `(n, n, n)` float32 in [-1/2, 1/2] that is positive inside the visible solid.

    A point belongs to the solid if both conditions hold:
    - No ray from outside reaches the point undimmed, or the point lies in a gap that is too narrow for a ball of the
      radius `CLOSING`. Such gaps are holes in soft or unfinished surfaces, behind which the field is hollow.
    - All lines through the point are opaque, so that the solid has the outlines of the renders. Gaps that a camera can
      look through stay open.

    Args:
        grid: `(n, n, n)` densities, per world unit.
        bound: Half the side of the cube, world units.
    """
    spacing = 2 * bound / (len(grid) - 1)
    level = np.full(grid.shape, -0.5, np.float32)
    box = _box_of_matter(grid, spacing)
    if box is None:
        return level
    least, through = optical_depths(grid[box], spacing)
    dimmed = least / (least + DIMMED) - 0.5
    closed = np.maximum(dimmed, _closed(dimmed > 0, CLOSING * bound / spacing))
    level[box] = np.minimum(closed, through / (through + OPAQUE) - 0.5)
    return level


def lit_shell(grid: np.ndarray, bound: float) -> np.ndarray:
    """Mark the grid points `(n, n, n)` near which the surface may lie: light reaches these points and is dimmed."""
    spacing = 2 * bound / (len(grid) - 1)
    shell = np.zeros(grid.shape, bool)
    box = _box_of_matter(grid, spacing)
    if box is None:
        return shell
    least, _ = optical_depths(grid[box], spacing)
    cube = np.ones((3, 3, 3), bool)
    shell[box] = ndimage.binary_dilation(least > CLEAR_DEPTH, cube) & (ndimage.minimum_filter(least, 3) < DARK_DEPTH)  # pyright: ignore[reportOperatorIssue]
    return shell


def optical_depths(grid: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest optical depths of rays from outside to each grid point, and of lines through the point.

    Args:
        grid: `(l, m, n)` densities, per world unit. The density outside the grid is 0.
        spacing: Distance between neighboring grid points, world units.
    """
    grid = np.minimum(grid, np.float32(MOST_PER_CELL / spacing)).astype(np.float32)
    least, through = np.full(grid.shape, np.inf, np.float32), np.full(grid.shape, np.inf, np.float32)
    ahead, whole = np.zeros_like(grid), np.zeros_like(grid)
    for x, y, z in _directions():
        sweep(grid, x, y, z, np.float32(spacing * math.sqrt(x * x + y * y + z * z)), ahead, whole, least, through)
    return least, through


def _directions() -> list[tuple[int, int, int]]:
    """Return 49 steps between grid points, one of each pair of opposite steps.

    Components are at most 2 in magnitude and have no common factor.
    """
    axis = np.arange(-2, 3)
    steps = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[np.gcd.reduce(steps, axis=1) == 1]
    return steps[len(steps) // 2 :].tolist()


def _box_of_matter(grid: np.ndarray, spacing: float) -> tuple[slice, ...] | None:
    """Return the part of the grid where lines along all axes are opaque, with a margin; `None` if there is none."""
    # The limit is half of the optical depth that the solid needs, because coarse grids are inaccurate.
    dense = [grid.sum(axis, keepdims=True) * spacing > OPAQUE / 2 for axis in range(3)]
    found = dense[0] & dense[1] & dense[2]
    if not found.any():
        return None
    box = []
    for axis in range(3):
        where = np.flatnonzero(found.any(tuple({0, 1, 2} - {axis})))
        box.append(slice(max(where[0] - 2, 0), where[-1] + 3))
    return tuple(box)


def _closed(solid: np.ndarray, radius: float) -> np.ndarray:
    """Return a level that is positive in a solid after morphological closing with a ball of `radius` cells."""
    solid = np.pad(solid, int(radius) + 2)
    grown = cast(np.ndarray, ndimage.distance_transform_edt(~solid)) <= radius
    closed = (cast(np.ndarray, ndimage.distance_transform_edt(grown)) - radius) / 4
    inner = (slice(int(radius) + 2, -int(radius) - 2),) * 3
    return closed[inner].clip(-0.5, 0.5).astype(np.float32)
