"""Rasterization of UV charts in a compiled loop for a CPU.

This module imports no other module of the package; see `compile_ahead`.
"""

import numba
import numpy as np


@numba.njit(cache=True)
def rasterize(corners, faces, size):
    """Return the triangle at each texel center `(size, size)`, or -1, and barycentric weights `(size, size, 3)`.

    A texel center outside all triangles but within half a texel of a triangle also belongs to that triangle, with
    weights clamped to the triangle. Charts narrower than a texel get their color this way.
    """
    owner = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 3), np.float32)
    inside = np.zeros((size, size), np.bool_)
    for face in range(faces.shape[0]):
        ax, ay = corners[faces[face, 0]]
        bx, by = corners[faces[face, 1]]
        cx, cy = corners[faces[face, 2]]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        left, right = max(int(min(ax, bx, cx) - 1.0), 0), min(int(max(ax, bx, cx) + 1.0), size - 1)
        top, bottom = max(int(min(ay, by, cy) - 1.0), 0), min(int(max(ay, by, cy) + 1.0), size - 1)
        # A weight decreases by 1 over a height of the triangle. `reach` is the decrease over half a texel.
        reach_a = 0.5 * np.hypot(cx - bx, cy - by) / abs(area)
        reach_b = 0.5 * np.hypot(ax - cx, ay - cy) / abs(area)
        reach_c = 0.5 * np.hypot(bx - ax, by - ay) / abs(area)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                within = wa >= 0.0 and wb >= 0.0 and wc >= 0.0
                if inside[row, column] or not (within or (wa > -reach_a and wb > -reach_b and wc > -reach_c)):
                    continue
                wa, wb, wc = max(wa, 0.0), max(wb, 0.0), max(wc, 0.0)
                total = wa + wb + wc
                owner[row, column], inside[row, column] = face, within
                weights[row, column] = np.array((wa / total, wb / total, wc / total))
    return owner, weights


def compile_loops() -> None:
    """Compile the loop for the argument types that the package uses; see `compile_ahead`."""
    rasterize(np.zeros((3, 2)), np.array([(0, 1, 2)], np.int32), 2)
