"""Density of a field on a grid, asked for only where the surface is, and the density at which to draw that surface."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation


Density = Callable[[torch.Tensor], torch.Tensor]  # (n, 3) world units -> (n,) per world unit
Colour = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # points (n, 3), unit directions (n, 3) -> RGB (n, 3)

COARSEST = 64  # cells along a side of the grid that is evaluated whole
CHUNK = 1 << 16  # points a call: bounds the memory a field needs


@torch.no_grad()
def in_chunks(field: Callable[..., torch.Tensor], *points: np.ndarray) -> np.ndarray:
    """`field` of many points, in bounded memory: arrays `(n, 3)` -> float32 `(n,)` or `(n, 3)`.

    Raises:
        ValueError: If the field returns NaN or infinity.
    """
    tensors = [torch.as_tensor(np.ascontiguousarray(p, np.float32)) for p in points]
    parts = [field(*chunk).float().cpu() for chunk in zip(*(t.split(CHUNK) for t in tensors), strict=True)]
    values = torch.cat(parts).numpy()
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"The field is NaN or infinite at {bad} of {len(values)} points: its optimisation diverged.")
    return values


def density_grid(
    density: Density, bound: float, resolution: int, threshold: float | None = None
) -> tuple[np.ndarray, float]:
    """Density at the corners of `resolution`^3 cells over [-bound, bound]^3, and the surface threshold.

    A grid of at most `COARSEST` cells a side is evaluated whole, then doubled as often as needed; the new points near
    the surface are evaluated and the others, far from any crossing of the threshold, are interpolated. A resolution
    that cannot be halved down to `COARSEST` is evaluated from a finer start, down to whole: slower, never wrong.

    Returns:
        The densities `(resolution + 1,) * 3`, axes x, y, z, and `threshold`: the one given, else the one of
        `half_opaque_threshold`.
    """
    start = resolution
    while start > COARSEST and start % 2 == 0:
        start //= 2
    axis = np.linspace(-bound, bound, start + 1, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = in_chunks(density, points).reshape((start + 1,) * 3)
    if threshold is None:
        threshold = half_opaque_threshold(grid, 2 * bound / start, bound)
    while len(grid) <= resolution:
        grid = _refined(grid, density, bound, threshold)
    return grid, threshold


def _refined(grid: np.ndarray, density: Density, bound: float, threshold: float) -> np.ndarray:
    """Twice as many cells a side: evaluated around the surface, interpolated elsewhere."""
    inside = grid > threshold
    cube = np.ones((3, 3, 3), bool)
    near = ndimage.binary_dilation(inside, cube) & ~ndimage.binary_erosion(inside, cube, border_value=1)
    fine = _doubled(grid)
    where = np.argwhere(_doubled(near.astype(np.float32)) > 0)
    if len(where):
        fine[tuple(where.T)] = in_chunks(density, where * np.float32(2 * bound / (len(fine) - 1)) - bound)
    return fine


def _doubled(grid: np.ndarray) -> np.ndarray:
    """Linear interpolation onto half the spacing: `(n + 1,) * 3` -> `(2 n + 1,) * 3`."""
    for axis in range(3):
        grid = np.moveaxis(grid, axis, 0)
        fine = np.empty((2 * len(grid) - 1, *grid.shape[1:]), np.float32)
        fine[::2], fine[1::2] = grid, (grid[1:] + grid[:-1]) / 2
        grid = np.moveaxis(fine, 0, axis)
    return np.ascontiguousarray(grid)


def half_opaque_threshold(grid: np.ndarray, spacing: float, bound: float) -> float:
    """The density whose solid has the outline that pictures of the field have.

    A picture shows a pixel as more object than background when the density along its ray integrates to over log 2; the
    solid covers the pixel when the largest density along the ray exceeds the threshold. The two outlines are compared
    from three sides for a range of thresholds. Many do about equally well for a hard surface, so among those within
    2 % of the best intersection over union the one nearest to log 2 / (0.05 bound) wins: the density that makes a
    feature of a fortieth of the cube's side half opaque. That one is also the answer where no ray is half opaque.

    Args:
        grid: `(n, n, n)` densities, per world unit.
        spacing: Distance of neighbouring grid points, world units.
        bound: Half the side of the cube, world units.
    """
    usual = math.log(2) / (0.05 * bound)
    # Seen along its own axes a box has rays that graze a whole face, and no picture has them: look from askew.
    turn = Rotation.from_euler("zyx", (25, 20, 15), degrees=True).as_matrix()
    middle = (len(grid) - 1) / 2 * np.ones(3)
    grid = ndimage.affine_transform(grid, turn, middle - turn @ middle, order=1)
    opaque = np.concatenate([(grid.sum(axis) * spacing > math.log(2)).ravel() for axis in range(3)])
    densest = np.concatenate([grid.max(axis).ravel() for axis in range(3)])
    if not opaque.any():
        return usual
    # Below 0.1 / bound even a ray through the whole cube is hardly dimmed.
    low, high = 0.1 / bound, 0.9 * float(densest.max())
    thresholds = np.append(np.geomspace(low, high, 48), np.clip(usual, low, high))
    covered = densest > thresholds[:, None]  # (n thresholds, n rays)
    agreement = (covered & opaque).sum(1) / (covered | opaque).sum(1)
    good = thresholds[agreement >= agreement.max() - 0.02]
    return float(good[np.abs(np.log(good / usual)).argmin()])
