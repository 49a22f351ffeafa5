"""Density grid in compiled loops for a CPU: lookups, and placement of samples for rendering without gradients.

Lookups are several times as fast as PyTorch's `grid_sample`.
"""

import math

import numba
import numpy as np


# Fast-math flags without `nnan` and `ninf`, which assume that no value is NaN or infinite. Cell indices must be valid
# for every point, including NaN.
SAFE = {"contract", "nsz", "arcp", "reassoc"}


@numba.njit(inline="always", fastmath=SAFE)
def _between(first, second, share):
    return first + share * (second - first)


@numba.njit(inline="always", fastmath=SAFE)
def _value_at(x, y, z, values, side, scale, shift):
    """Return the trilinear value of the flat `values` of `padded` at a point in world units, see `look_up`."""
    last = np.float32(side - 1)
    # Coordinates in cells: 0 is the center of the first cell, which is padding.
    x = min(max(x * scale + shift, np.float32(0)), last)
    y = min(max(y * scale + shift, np.float32(0)), last)
    z = min(max(z * scale + shift, np.float32(0)), last)
    column = max(0, min(np.int32(x), side - 2))
    row = max(0, min(np.int32(y), side - 2))
    layer = max(0, min(np.int32(z), side - 2))
    x, y, z = x - np.float32(column), y - np.float32(row), z - np.float32(layer)
    near = column + side * (row + side * layer)
    far = near + side * side
    return _between(
        _between(
            _between(values[near], values[near + 1], x),
            _between(values[near + side], values[near + side + 1], x),
            y,
        ),
        _between(
            _between(values[far], values[far + 1], x),
            _between(values[far + side], values[far + side + 1], x),
            y,
        ),
        z,
    )


@numba.njit(parallel=True, fastmath=SAFE, cache=True, nogil=True)
def look_up(points, padded, bound, out):
    """Write the trilinear value of a grid with n^3 cells to `out` for every point. Values are at the cell centers.

    Args:
        points: `(m, 3)` in world units. Beyond the centers of the outer cells, the value falls to 0 within one cell.
        padded: `(n + 2, n + 2, n + 2)` (z, y, x): the values with a layer of zeros around them, so that the loop needs
            no boundary checks.
        bound: Half the side of the cube, world units, float32.
        out: `(m,)`.
    """
    side, values = padded.shape[0], padded.ravel()
    last = np.float32(side - 1)
    scale, shift = (last - np.float32(1)) / (np.float32(2) * bound), last / np.float32(2)
    for i in numba.prange(points.shape[0]):
        out[i] = _value_at(points[i, 0], points[i, 1], points[i, 2], values, side, scale, shift)


RAYS_PER_BLOCK = 256  # rays that share one buffer


@numba.njit(parallel=True, fastmath=SAFE, cache=True, nogil=True)
def place(origins, directions, near, far, padded, filled, bound, cells, most, least, out, live):
    """Place the samples of each ray at equally spaced quantiles of the rendering weights that the grid gives.

    The samples are those of `importance_samples` with the kernel (1, 1, 1). `importance_samples` needs tables of
    densities and weights in main memory. In this loop, densities and weights stay in the CPU cache.

    Args:
        origins: `(n, 3)` float32.
        directions: `(n, 3)` float32, unit vectors.
        near: `(n,)` float32 distance at which each ray enters the rendered box.
        far: `(n,)` float32 distance at which each ray leaves the rendered box.
        padded: See `look_up`.
        bound: See `look_up`.
        filled: `(n + 1, n + 1, n + 1)` bool: whether any of the eight corner values of a cell is large enough for a
            lookup; see `DensityGrid.filled`.
        cells: Number of equal cells between `near` and `far`. The grid is read at the cell centers.
        most: Upper limit of the optical depth of a cell, float32.
        least: Largest optical depth of a ray that counts as empty, float32.
        out: `(n, n_samples)` float32, sorted distances of the live rays. The rows of empty rays are not written.
        live: `(n,)` bool: whether a ray is not empty. Written for every ray.
    """
    side, values, n_samples = padded.shape[0], padded.ravel(), out.shape[1]
    last, one, floor = np.float32(side - 1), np.float32(1), np.float32(1e-5)
    scale, shift = (last - one) / (np.float32(2) * bound), last / np.float32(2)
    for block in numba.prange((len(origins) + RAYS_PER_BLOCK - 1) // RAYS_PER_BLOCK):
        weights = np.empty(cells + 2, np.float32)  # with a zero at each end
        for i in range(block * RAYS_PER_BLOCK, min((block + 1) * RAYS_PER_BLOCK, len(origins))):
            length, passed = (far[i] - near[i]) / np.float32(cells), np.float32(0)
            live[i] = False
            if not length > 0:
                continue
            weights[:] = 0
            through = one  # transmittance
            for j in range(cells):
                z = near[i] + length * (np.float32(j) + np.float32(0.5))
                px = origins[i, 0] + z * directions[i, 0]
                py = origins[i, 1] + z * directions[i, 1]
                pz = origins[i, 2] + z * directions[i, 2]
                column = max(0, min(np.int32(px * scale + shift), side - 2))
                row = max(0, min(np.int32(py * scale + shift), side - 2))
                layer = max(0, min(np.int32(pz * scale + shift), side - 2))
                if filled[layer, row, column]:
                    density = _value_at(px, py, pz, values, side, scale, shift)
                    passed += min(density * length, most)
                    left = math.exp(-passed)
                    weights[j + 1] = through - left
                    through = left
                    if through < floor:  # all cells behind this cell get only the floor
                        break
            if not passed > least:
                continue
            live[i] = True
            # Sum of the smoothed weights. Each outer cell has only one neighbor.
            total = np.float32(3) * (one - through) - weights[1] - weights[cells] + np.float32(3 * cells - 2) * floor
            step = total / np.float32(n_samples)
            wanted, reached, k = np.float32(0.5) * step, np.float32(0), 0
            for j in range(cells):
                neighbors = np.float32(3 - (j == 0) - (j == cells - 1))
                share = weights[j] + weights[j + 1] + weights[j + 2] + neighbors * floor
                while k < n_samples and wanted < reached + share:
                    out[i, k] = near[i] + length * (np.float32(j) + (wanted - reached) / share)
                    k += 1
                    wanted = (np.float32(k) + np.float32(0.5)) * step
                reached += share
            for rest in range(k, n_samples):  # rounding of the sums may leave samples unplaced
                out[i, rest] = far[i]


def compile_loops() -> None:
    """Compile the loops for the argument types that the package uses; see `compile_ahead`."""
    points, values, ray = np.zeros((1, 3), np.float32), np.zeros((3, 3, 3), np.float32), np.zeros(1, np.float32)
    one = np.float32(1)
    look_up(points, values, one, ray)
    filled, live = np.zeros((2, 2, 2), np.bool_), np.zeros(1, np.bool_)
    place(points, points, ray, ray, values, filled, one, 1, one, one, points, live)
