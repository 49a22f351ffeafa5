"""The solid that pictures of a field show, with its soft parts and without hollows that no camera looks through.

A level set of the density misses what is soft and shows what is hollow. Pictures integrate the density along rays, and
so does this module: the optical depth of a path is the density integrated along it, and log 2 dims light to a half.
"""

import math

import numpy as np
from scipy import ndimage

from .opacity_cpu import sweep


DIMMED = 0.07  # optical depth from outside at which the surface is drawn
OPAQUE = 0.6  # least optical depth of a line through the solid; pictures are half opaque at log 2
CLOSING = 0.08  # radius of the ball that closes holes, of half the side of the cube
CLEAR_DEPTH, DARK_DEPTH = 0.02, 2.0  # optical depths between which a surface may be drawn
MOST_PER_CELL = 8.0  # optical depth of a cell: more cannot be told from it, and sums stay exact


def solid_level(grid: np.ndarray, bound: float) -> np.ndarray:
    """Return a level `(n, n, n)` float32 in [-1/2, 1/2] that is positive inside the solid that pictures show.

    A point belongs to the solid if both hold:
    - No ray from outside reaches the point undimmed, or the point lies in a gap too narrow for a ball of the radius
      `CLOSING`. The gaps are holes in soft or half-finished surfaces, behind which the field is hollow.
    - All lines through the point are opaque, so that the solid has the outlines of the pictures. Gaps that a camera
      can look through stay open.

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
    """Mark the grid points `(n, n, n)` near which the surface may be: those that dim light and that light reaches."""
    spacing = 2 * bound / (len(grid) - 1)
    shell = np.zeros(grid.shape, bool)
    box = _box_of_matter(grid, spacing)
    if box is None:
        return shell
    least, _ = optical_depths(grid[box], spacing)
    cube = np.ones((3, 3, 3), bool)
    shell[box] = ndimage.binary_dilation(least > CLEAR_DEPTH, cube) & (ndimage.minimum_filter(least, 3) < DARK_DEPTH)
    return shell


def optical_depths(grid: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the least optical depths of the rays from outside to each grid point, and of the lines through it.

    Args:
        grid: `(l, m, n)` densities, per world unit; there is nothing outside of the grid.
        spacing: Distance between neighboring grid points, world units.
    """
    grid = np.minimum(grid, np.float32(MOST_PER_CELL / spacing)).astype(np.float32)
    least, through = np.full(grid.shape, np.inf, np.float32), np.full(grid.shape, np.inf, np.float32)
    ahead, whole = np.zeros_like(grid), np.zeros_like(grid)
    for x, y, z in _directions():
        sweep(grid, x, y, z, np.float32(spacing * math.sqrt(x * x + y * y + z * z)), ahead, whole, least, through)
    return least, through


def _directions() -> list[tuple[int, int, int]]:
    """Return 49 steps between grid points, one of each opposite pair: components of at most 2, without factors."""
    axis = np.arange(-2, 3)
    steps = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[np.gcd.reduce(steps, axis=1) == 1]
    return steps[len(steps) // 2 :].tolist()


def _box_of_matter(grid: np.ndarray, spacing: float) -> tuple[slice, ...] | None:
    """Return the part of the grid in which lines along the axes are opaque, with a margin; `None` if there is none."""
    # Half of what the solid needs: the grid that decides where a finer one is evaluated is coarse.
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
    """Return a level that is positive in a solid after its closing with a ball of `radius` cells."""
    solid = np.pad(solid, int(radius) + 2)
    grown = ndimage.distance_transform_edt(~solid) <= radius
    closed = (ndimage.distance_transform_edt(grown) - radius) / 4
    inner = (slice(int(radius) + 2, -int(radius) - 2),) * 3
    return closed[inner].clip(-0.5, 0.5).astype(np.float32)
