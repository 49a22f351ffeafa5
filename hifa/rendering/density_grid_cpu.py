"""The look-up in the density grid as a compiled loop for a CPU, several times as fast as torch's `grid_sample`."""

import numba
import numpy as np


# What fast mathematics may assume, but for one thing: that no number is NaN. A cell must be one of the grid whatever
# the point is.
SAFE = {"contract", "nsz", "arcp", "reassoc"}


@numba.njit(inline="always", fastmath=SAFE)
def _between(first, second, share):
    return first + share * (second - first)


@numba.njit(parallel=True, fastmath=SAFE, cache=True, nogil=True)
def look_up(points, padded, bound, out):
    """Write the trilinear value of a grid of n^3 cells, at whose centres the values are, into `out` for every point.

    Args:
        points: `(m, 3)` world units. Beyond the centres of the outer cells the value falls to 0 within a cell.
        padded: `(n + 2, n + 2, n + 2)` (z, y, x): the values with a layer of zeros around, which spares the loop its
            questions where the grid ends.
        bound: Half the side of the cube, world units, float32.
        out: `(m,)`.
    """
    side, values = padded.shape[0], padded.ravel()
    last = np.float32(side - 1)
    scale, shift = (last - np.float32(1)) / (np.float32(2) * bound), last / np.float32(2)
    for i in numba.prange(points.shape[0]):
        # In cells: 0 at the centre of the first one, which is padding.
        x = min(max(points[i, 0] * scale + shift, np.float32(0)), last)
        y = min(max(points[i, 1] * scale + shift, np.float32(0)), last)
        z = min(max(points[i, 2] * scale + shift, np.float32(0)), last)
        column = max(0, min(np.int32(x), side - 2))
        row = max(0, min(np.int32(y), side - 2))
        layer = max(0, min(np.int32(z), side - 2))
        x, y, z = x - np.float32(column), y - np.float32(row), z - np.float32(layer)
        near = column + side * (row + side * layer)
        far = near + side * side
        out[i] = _between(
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


def compile_loops() -> None:
    """Compile the loop for the types that `DensityGrid` calls it with; see `compile_ahead`."""
    look_up(np.zeros((1, 3), np.float32), np.zeros((3, 3, 3), np.float32), np.float32(1), np.zeros(1, np.float32))
