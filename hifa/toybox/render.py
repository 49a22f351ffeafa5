"""Sphere tracing of a Toybox scene: color, mask, depth and normals from any camera.

The lighting does not depend on the azimuth: light comes from above, and a little from the camera. A surface therefore
has nearly the same color from all sides, and a radiance field can agree with all training images.
"""

from dataclasses import dataclass

import numba
import numpy as np

from ..cameras import Camera, camera_to_world
from .shapes import Shape, bounding_radii, distance


STEPS, NEAR_ENOUGH = 48, 1.5e-3
TILE = 8  # pixels
MARGIN = 0.01  # world units; covers the offsets of the finite differences in `_normal`


@dataclass(frozen=True)
class Picture:
    """Output of `render`. H and W equal `size`.

    Args:
        color: `(H, W, 3)` float32 RGB in [0, 1], background included.
        mask: `(H, W)` share of each pixel that the object covers, in [0, 1].
        depth: `(H, W)` distance along the ray to the surface, world units. The value is the mean over the covered part
            of the pixel; 0 outside of the object.
        normals: `(H, W, 3)` unit normals in world axes; 0 outside of the object.
    """

    color: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


@numba.njit(fastmath=True, cache=True)
def _normal(kind, operation, size, center, rotation, x, y, z):
    """Return the unit normal by tetrahedral finite differences of the distance."""
    nx, ny, nz = 0.0, 0.0, 0.0
    for k in range(4):
        ex, ey, ez = 1.0 if k in (0, 3) else -1.0, 1.0 if k in (1, 3) else -1.0, 1.0 if k in (2, 3) else -1.0
        d, _ = distance(kind, operation, size, center, rotation, x + 2e-3 * ex, y + 2e-3 * ey, z + 2e-3 * ez)
        nx, ny, nz = nx + ex * d, ny + ey * d, nz + ez * d
    length = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
    return nx / length, ny / length, nz / length


@numba.njit(fastmath=True, cache=True)
def _trace(kind, operation, size, center, rotation, origin, dx, dy, dz, radius):
    """Return the distance along the ray to the surface and the index of the part there, or (-1, 0) for a miss."""
    b = origin[0] * dx + origin[1] * dy + origin[2] * dz
    inner = b * b - (origin[0] ** 2 + origin[1] ** 2 + origin[2] ** 2 - radius * radius)
    if inner <= 0.0:
        return -1.0, 0
    t, far = max(-b - np.sqrt(inner), 0.0), -b + np.sqrt(inner)
    for _ in range(STEPS):
        d, part = distance(
            kind, operation, size, center, rotation, origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
        )
        if d < NEAR_ENOUGH:
            return t, part
        t += 0.95 * d
        if t > far:
            return -1.0, 0
    return -1.0, 0


@numba.njit(fastmath=True, cache=True, nogil=True)
def _render(kind, operation, size, center, rotation, colors, reach, pose, focal, pixels, samples, background, radius):
    """Render tile by tile. Rays are tested only against the parts that may meet the cone around their tile."""
    picture = (
        np.zeros((pixels, pixels, 3), np.float32), np.zeros((pixels, pixels), np.float32),
        np.zeros((pixels, pixels), np.float32), np.zeros((pixels, pixels, 3), np.float32),
    )  # fmt: skip
    for row in range(0, pixels, TILE):
        for column in range(0, pixels, TILE):
            rows, columns = min(TILE, pixels - row), min(TILE, pixels - column)
            u, v = (column + columns / 2 - pixels / 2) / focal, (row + rows / 2 - pixels / 2) / focal
            near = _parts_in_cone(center, reach, pose, u, v, np.hypot(rows, columns) / 2 / focal)
            view = pose, focal, pixels, samples, background, radius
            parts = kind[near], operation[near], size[near], center[near], rotation[near], colors[near]
            _render_tile(parts, view, row, rows, column, columns, picture)
    return picture


@numba.njit(fastmath=True, cache=True)
def _parts_in_cone(center, reach, pose, u, v, slope):
    """Return the indices of the parts whose bounding balls meet a cone from the camera.

    Args:
        center: `(n, 3)` centers of the balls.
        reach: `(n,)` radii of the balls.
        pose: `(3, 4)` camera-to-world matrix.
        u: Horizontal position of the axis of the cone in the image plane at distance 1.
        v: Vertical position of the axis.
        slope: Upper bound of the tangent of half the opening angle.
    """
    x = pose[0, 0] * u + pose[0, 1] * v + pose[0, 2]
    y = pose[1, 0] * u + pose[1, 1] * v + pose[1, 2]
    z = pose[2, 0] * u + pose[2, 1] * v + pose[2, 2]
    scale = 1.0 / np.sqrt(x * x + y * y + z * z)
    cosine = 1.0 / np.sqrt(1.0 + slope * slope)
    found, count = np.empty(reach.shape[0], np.int64), 0
    for i in range(reach.shape[0]):
        px, py, pz = center[i, 0] - pose[0, 3], center[i, 1] - pose[1, 3], center[i, 2] - pose[2, 3]
        along = (px * x + py * y + pz * z) * scale
        across = np.sqrt(max(px * px + py * py + pz * pz - along * along, 0.0))
        if (across - along * slope) * cosine <= reach[i] + MARGIN:
            found[count] = i
            count += 1
    return found[:count]


@numba.njit(fastmath=True, cache=True)
def _render_tile(parts, view, first_row, rows, first_column, columns, picture):
    """Render the pixels of a tile into the arrays of `picture`."""
    kind, operation, size, center, rotation, colors = parts
    pose, focal, pixels, samples, background, radius = view
    color, mask, depth, normals = picture
    origin = pose[:, 3]
    for row in range(first_row, first_row + rows):
        for column in range(first_column, first_column + columns):
            for sub in range(samples * samples):
                # Pixel (0, 0) covers [0, 1) x [0, 1). Samples lie at the centers of equal cells of a pixel.
                u = (column + (sub % samples + 0.5) / samples - pixels / 2) / focal
                v = (row + (sub // samples + 0.5) / samples - pixels / 2) / focal
                norm = 1.0 / np.sqrt(u * u + v * v + 1.0)
                dx = (pose[0, 0] * u + pose[0, 1] * v + pose[0, 2]) * norm
                dy = (pose[1, 0] * u + pose[1, 1] * v + pose[1, 2]) * norm
                dz = (pose[2, 0] * u + pose[2, 1] * v + pose[2, 2]) * norm
                t, part = _trace(kind, operation, size, center, rotation, origin, dx, dy, dz, radius)
                if t < 0.0:
                    for k in range(3):
                        color[row, column, k] += background[k]
                    continue
                nx, ny, nz = _normal(
                    kind, operation, size, center, rotation, origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
                )
                facing = max(-(nx * dx + ny * dy + nz * dz), 0.0)
                light = 0.58 + 0.24 * nz + 0.22 * facing
                for k in range(3):
                    color[row, column, k] += min(colors[part, k] * light, 1.0)
                mask[row, column] += 1.0
                depth[row, column] += t
                normals[row, column, 0] += nx
                normals[row, column, 1] += ny
                normals[row, column, 2] += nz
            for k in range(3):
                color[row, column, k] /= samples * samples
            if mask[row, column] > 0.0:
                depth[row, column] /= mask[row, column]
                length = max(np.sqrt((normals[row, column] ** 2).sum()), 1e-6)
                for k in range(3):
                    normals[row, column, k] /= length
                mask[row, column] /= samples * samples


def orbit_pose(azimuth_deg: float, elevation_deg: float, radius: float) -> np.ndarray:
    """Return the `(3, 4)` array of `cameras.camera_to_world` for a camera that looks at the origin, OpenCV axes."""
    return camera_to_world(Camera(azimuth_deg, elevation_deg, radius)).numpy()


def render(
    shape: Shape,
    pose: np.ndarray,
    size: int = 64,
    fov_deg: float = 40.0,
    background: tuple[float, float, float] = (0.8, 0.8, 0.8),
    samples: int = 2,
    radius: float = 0.8,
) -> Picture:
    """Render a scene.

    Args:
        shape: Geometry, from `world.make_scene(...).shape`.
        pose: `(3, 4)` or `(4, 4)` camera-to-world matrix, OpenCV axes, world units. See `orbit_pose`.
        size: Height and width in pixels.
        fov_deg: Horizontal and vertical field of view in degrees.
        background: RGB in [0, 1].
        samples: `samples` x `samples` rays per pixel.
        radius: Radius in world units of a ball around the origin that contains the scene. Rays that miss the ball are
            not traced.
    """
    focal = 0.5 * size / np.tan(np.radians(fov_deg) / 2)
    pose = np.ascontiguousarray(np.asarray(pose)[:3], np.float64)
    arrays, reach = shape.arrays(), bounding_radii(shape)
    flat = np.asarray(background, np.float64)
    return Picture(*_render(*arrays, reach, pose, focal, size, samples, flat, radius))
