"""Hash encoding in compiled loops for a CPU. numba is installed from a wheel and needs no C compiler.

The forward pass is parallel over points. The backward pass is parallel over levels, so that each thread owns its part
of the table. This avoids data races and fixes the order of summation, which makes a run repeatable bit for bit.
"""

import numba
import numpy as np


def share_threads() -> None:
    """Make numba use as many threads as PyTorch. Call this function before every compiled loop.

    numba and PyTorch share one thread pool, and numba sets its own number of threads for both when it starts. PyTorch
    would then round sums differently, and a resumed run would differ from an uninterrupted run.
    """
    import torch  # imported here, so that the loops can be compiled without importing torch

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@numba.njit(inline="always", fastmath=True)
def _locate(coordinate, resolution):
    scaled = min(max(coordinate, np.float32(0.0)), np.float32(1.0)) * np.float32(resolution)
    cell = max(0, min(np.int64(scaled), resolution - 1))  # clamping gives NaN a valid cell, too
    return cell, scaled - np.float32(cell)


@numba.njit(inline="always", fastmath=True)
def _corner_weight(cx, cy, cz, fx, fy, fz):
    one = np.float32(1.0)  # numba computes a plain 1 - fx in double precision
    return (fx if cx else one - fx) * (fy if cy else one - fy) * (fz if cz else one - fz)


@numba.njit(inline="always", fastmath=True)
def _corner_index(x, y, z, resolution, entries):
    if (resolution + 1) ** 3 <= entries:
        return x + (resolution + 1) * (y + (resolution + 1) * z)
    return (x ^ (y * 2654435761) ^ (z * 805459861)) & (entries - 1)


@numba.njit(parallel=True, fastmath=True, cache=True, nogil=True)
def encode_forward(points, table, resolutions, entries, out):
    """Write the encoding of `points` `(n, 3)` to `out` `(n, 2 * levels)`; `table` is `(levels * entries, 2)`."""
    for i in numba.prange(points.shape[0]):
        for level in range(resolutions.shape[0]):
            resolution = resolutions[level]
            x, fx = _locate(points[i, 0], resolution)
            y, fy = _locate(points[i, 1], resolution)
            z, fz = _locate(points[i, 2], resolution)
            first, second = np.float32(0.0), np.float32(0.0)
            for corner in range(8):
                cx, cy, cz = corner & 1, corner >> 1 & 1, corner >> 2 & 1
                weight = _corner_weight(cx, cy, cz, fx, fy, fz)
                row = level * entries + _corner_index(x + cx, y + cy, z + cz, resolution, entries)
                first += weight * table[row, 0]
                second += weight * table[row, 1]
            out[i, 2 * level] = first
            out[i, 2 * level + 1] = second


@numba.njit(parallel=True, fastmath=True, cache=True, nogil=True)
def encode_backward(points, grad, resolutions, entries, grad_table):
    """Add the gradient of the table to `grad_table`, given the output gradient `grad` `(n, 2 * levels)`."""
    for level in numba.prange(resolutions.shape[0]):
        resolution = resolutions[level]
        for i in range(points.shape[0]):
            first, second = grad[i, 2 * level], grad[i, 2 * level + 1]
            if first == 0.0 and second == 0.0:  # a point behind a surface or in the background
                continue
            x, fx = _locate(points[i, 0], resolution)
            y, fy = _locate(points[i, 1], resolution)
            z, fz = _locate(points[i, 2], resolution)
            for corner in range(8):
                cx, cy, cz = corner & 1, corner >> 1 & 1, corner >> 2 & 1
                weight = _corner_weight(cx, cy, cz, fx, fy, fz)
                row = level * entries + _corner_index(x + cx, y + cy, z + cz, resolution, entries)
                grad_table[row, 0] += weight * first
                grad_table[row, 1] += weight * second


def compile_loops() -> None:
    """Compile both loops for the argument types that `HashGrid` uses; see `compile_ahead`."""
    points, table, features = (np.zeros((1, n), np.float32) for n in (3, 2, 2))
    resolutions = np.ones(1, np.int64)
    encode_forward(points, table, resolutions, 1, features)
    encode_backward(points, features, resolutions, 1, table)
