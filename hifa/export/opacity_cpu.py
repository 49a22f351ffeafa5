"""Integrals of the density along grid lines in a compiled loop for a CPU.

This module imports no other module of the package; see `compile_ahead`.
"""

import numba
import numpy as np


@numba.njit(cache=True, fastmath=True, nogil=True)
def sweep(density, dx, dy, dz, length, ahead, whole, least, through):
    """Integrate the density along all lines of one direction, and update the minima `least` and `through`.

    The first nonzero component of the direction must be positive. Unless the direction is z, the loops over z have no
    branches and no dependencies within a row, so that the compiler can vectorize the loops.
    """
    nx, ny, nz = density.shape
    # The middle of a step of length 2 may not be a grid point. The mean of two neighbors replaces the middle.
    hx, hy, hz = dx // 2, dy // 2, dz // 2
    double = max(dx, abs(dy), abs(dz)) == 2
    half, quarter = np.float32(0.5) * length, np.float32(0.25) * length
    first, last = min(max(dz, 0), nz), max(min(nz, nz + dz), 0)
    for x in range(nx):
        for j in range(ny):
            y = j if dy >= 0 else ny - 1 - j
            px, py = x - dx, y - dy
            for z in range(nz):
                ahead[x, y, z] = half * density[x, y, z]
            if px < 0 or py < 0 or py >= ny:
                continue
            if double:
                mx, my, kx, ky = px + hx, py + hy, x - hx, y - hy
                for z in range(first, last):
                    middle = density[mx, my, z - dz + hz] + density[kx, ky, z - hz]
                    step = quarter * (density[px, py, z - dz] + density[x, y, z] + middle)
                    ahead[x, y, z] = ahead[px, py, z - dz] + step
            else:
                for z in range(first, last):
                    ahead[x, y, z] = ahead[px, py, z - dz] + half * (density[px, py, z - dz] + density[x, y, z])
    first, last = max(-dz, 0), min(nz, nz - dz)
    for i in range(nx):
        x = nx - 1 - i
        for j in range(ny):
            y = ny - 1 - j if dy >= 0 else j
            qx, qy = x + dx, y + dy
            for z in range(nz):
                whole[x, y, z] = ahead[x, y, z] + half * density[x, y, z]
            if qx < nx and 0 <= qy < ny:
                if dx == 0 and dy == 0:
                    for k in range(first, last):
                        whole[x, y, last - 1 - k] = whole[x, y, last - 1 - k + dz]
                else:
                    for z in range(first, last):
                        whole[x, y, z] = whole[qx, qy, z + dz]
            for z in range(nz):
                through[x, y, z] = min(through[x, y, z], whole[x, y, z])
                nearer = min(ahead[x, y, z], whole[x, y, z] - ahead[x, y, z])
                least[x, y, z] = min(least[x, y, z], nearer)


def compile_loops() -> None:
    """Compile the loop for the argument types that the package uses; see `compile_ahead`."""
    grids = [np.zeros((2, 2, 2), np.float32) for _ in range(5)]
    sweep(grids[0], 1, 0, 0, np.float32(1), *grids[1:])
