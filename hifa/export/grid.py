"""Density of a field on a grid, evaluated at full resolution only near the surface."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from .opacity import lit_shell


Density = Callable[[torch.Tensor], torch.Tensor]  # (n, 3) world units -> (n,) per world unit
Color = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # points (n, 3), unit directions (n, 3) -> RGB (n, 3)

COARSEST = 64  # cells per side up to which a grid is evaluated completely
CHUNK = 1 << 16  # points per call, which bounds the memory that a field needs


@torch.no_grad()
def in_chunks(field: Callable[..., torch.Tensor], *points: np.ndarray) -> np.ndarray:
    """Evaluate `field` at many points in bounded memory: arrays `(n, 3)` -> float32 `(n,)` or `(n, 3)`.

    Raises:
        ValueError: If the field returns NaN or infinity.
    """
    tensors = [torch.as_tensor(np.ascontiguousarray(p, np.float32)) for p in points]
    parts = [field(*chunk).float().cpu() for chunk in zip(*(t.split(CHUNK) for t in tensors), strict=True)]
    values = torch.cat(parts).numpy()
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"The field is NaN or infinite at {bad} of {len(values)} points: its optimization diverged.")
    return values


def density_grid(density: Density, bound: float, resolution: int, threshold: float | None = None) -> np.ndarray:
    """Evaluate the density at the corners of `resolution`^3 cells over [-bound, bound]^3.

    A coarse grid is evaluated completely, then doubled until it has `resolution` cells per side. After a doubling, new
    points near the surface are evaluated, and all other new points are interpolated. The coarse grid is `resolution`
    halved down to at most `COARSEST` cells per side. A resolution that cannot be halved often enough starts with a
    finer grid, in the worst case the full grid. A finer start is slower but equally accurate.

    Args:
        density: Density of the field.
        bound: Half the side of the cube, world units.
        resolution: Cells per side.
        threshold: Density at the surface. By default, the surface is the shell that light from outside reaches, see
            `opacity.lit_shell`.

    Returns:
        The densities `(resolution + 1,) * 3`, axes x, y, z.
    """
    start = resolution
    while start > COARSEST and start % 2 == 0:
        start //= 2
    axis = np.linspace(-bound, bound, start + 1, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = in_chunks(density, points).reshape((start + 1,) * 3)
    while len(grid) <= resolution:
        near = lit_shell(grid, bound) if threshold is None else _crossing(grid > threshold)
        grid = _refined(grid, density, bound, near)
    return grid


def _crossing(inside: np.ndarray) -> np.ndarray:
    """Mark the grid points that have a neighbor on the other side of the surface."""
    cube = np.ones((3, 3, 3), bool)
    return ndimage.binary_dilation(inside, cube) & ~ndimage.binary_erosion(inside, cube, border_value=1)  # pyright: ignore[reportOperatorIssue]


def _refined(grid: np.ndarray, density: Density, bound: float, near: np.ndarray) -> np.ndarray:
    """Double the cells per side: evaluate the points `near` the surface, and interpolate all other points."""
    fine = _doubled(grid)
    where = np.argwhere(_doubled(near.astype(np.float32)) > 0)
    if len(where):
        fine[tuple(where.T)] = in_chunks(density, where * np.float32(2 * bound / (len(fine) - 1)) - bound)
    return fine


def _doubled(grid: np.ndarray) -> np.ndarray:
    """Interpolate linearly to half the spacing: `(n + 1,) * 3` -> `(2 n + 1,) * 3`."""
    for axis in range(3):
        grid = np.moveaxis(grid, axis, 0)
        fine = np.empty((2 * len(grid) - 1, *grid.shape[1:]), np.float32)
        fine[::2], fine[1::2] = grid, (grid[1:] + grid[:-1]) / 2
        grid = np.moveaxis(fine, 0, axis)
    return np.ascontiguousarray(grid)
