"""Colors of surface points, as in renders of the field."""

import numpy as np
from scipy import ndimage

from .grid import Color, in_chunks


# Cameras around the object: elevation in degrees, number of azimuths, weight. Most views are from slightly above.
RINGS = ((15.0, 8, 1.0), (60.0, 4, 0.25), (-40.0, 4, 0.25))
DISTANCE = 2.5  # distance of the cameras, in units of half the side of the cube
LEAST_FACING = 0.2  # cosine between normal and view direction below which a camera does not count
UNSEEN = 0.02  # weight of the view against the normal; if no camera sees a point, this is its only view
# Sample depths along a ray, in cells behind the surface. The range includes the depth of closed holes.
DEPTHS = np.concatenate([np.arange(-4, -1), np.arange(-1, 2, 0.5), np.arange(2, 10.5)]).astype(np.float32)
AHEAD = np.arange(5, 61, 2, dtype=np.float32)  # sample depths in front of the surface, in cells, to find occluders


def pictured_color(
    grid: np.ndarray, color: Color, vertices: np.ndarray, normals: np.ndarray, bound: float
) -> np.ndarray:
    """Return the colors `(V, 3)` float32 of vertices, averaged over the cameras that see each vertex.

    Colors are composited along rays. In a soft field, many samples of a ray contribute, so no single point has the
    color that renders show.

    Args:
        grid: `(n, n, n)` densities, per world unit, over [-bound, bound]^3.
        color: As for `extract_mesh`.
        vertices: `(V, 3)` world units.
        normals: `(V, 3)` unit normals.
        bound: Half the side of the cube, world units.
    """
    spacing = 2 * bound / (len(grid) - 1)
    total, weights = np.zeros((len(vertices), 3)), np.zeros(len(vertices))

    def add(rows: np.ndarray, views: np.ndarray, facing: np.ndarray) -> None:
        total[rows] += facing[:, None] * _composited(grid, color, vertices[rows], views, spacing, bound)
        weights[rows] += facing

    for camera, weight in _cameras(bound):
        views = vertices - camera
        views /= np.linalg.norm(views, axis=1, keepdims=True)
        facing = -(views * normals).sum(1)
        rows = np.flatnonzero(facing > LEAST_FACING)
        facing = weight * facing[rows] * _clear(grid, vertices[rows], views[rows], spacing, bound)
        lit = facing > UNSEEN
        add(rows[lit], views[rows[lit]].astype(np.float32), facing[lit])
    rows = np.flatnonzero(weights < 5 * UNSEEN)
    add(rows, -normals[rows], np.full(len(rows), UNSEEN))
    return (total / weights[:, None]).clip(0, 1).astype(np.float32)


def seen_color(color: Color, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return colors `(n, 3)` of surface points, averaged over four views.

    One view is against the normal. Three views are at 45 degrees to the normal, 120 degrees apart.
    """
    views = [-normals] + [_tilted(normals, turn) for turn in (0.0, 120.0, 240.0)]
    return np.mean([in_chunks(color, points, view) for view in views], axis=0).clip(0, 1).astype(np.float32)


def _tilted(normals: np.ndarray, turn_deg: float) -> np.ndarray:
    """Return directions `(n, 3)` toward the surface, 45 degrees off the normal and turned about it by `turn_deg`."""
    # A vector that is not parallel to the normal: the axis along which the normal has its smallest component.
    helper = np.eye(3, dtype=np.float32)[np.abs(normals).argmin(1)]
    u = np.cross(normals, helper)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-30)
    v = np.cross(normals, u)
    turn = np.radians(turn_deg)
    return -((normals + np.cos(turn) * u + np.sin(turn) * v) / np.sqrt(2)).astype(np.float32)


def _cameras(bound: float) -> list[tuple[np.ndarray, float]]:
    cameras = []
    for elevation, count, weight in RINGS:
        azimuths, up = np.radians(np.arange(count) * 360 / count), np.radians(elevation)
        ring = [np.cos(azimuths) * np.cos(up), np.sin(azimuths) * np.cos(up), np.full(count, np.sin(up))]
        cameras += [(place, weight) for place in np.stack(ring, axis=1) * DISTANCE * bound]
    return cameras


def _composited(
    grid: np.ndarray, color: Color, points: np.ndarray, views: np.ndarray, spacing: float, bound: float
) -> np.ndarray:
    """Return colors `(n, 3)`, composited along `DEPTHS` of rays in the directions `views` through `points`."""
    depths = DEPTHS * np.float32(spacing)
    middles = (depths[1:] + depths[:-1]) / 2
    values = _look_up(grid, points[:, None] + middles[:, None] * views[:, None], spacing, bound)
    passed = np.pad(np.cumsum(values * np.diff(depths), axis=1), ((0, 0), (1, 0)))
    weights = -np.diff(np.exp(-passed), axis=1)
    weights[:, -1] += 1e-6  # a ray that meets nothing gets the color at its end
    weights /= weights.sum(1, keepdims=True)
    row, at = np.nonzero(weights > 0.05)
    along = (points[row] + middles[at, None] * views[row]).clip(-bound, bound)
    colors, weight = in_chunks(color, along, views[row]), weights[row, at]
    sums = [np.bincount(row, weight * colors[:, k], minlength=len(points)) for k in range(3)]
    return np.stack(sums, axis=1) / np.bincount(row, weight, minlength=len(points))[:, None]


def _clear(grid: np.ndarray, points: np.ndarray, views: np.ndarray, spacing: float, bound: float) -> np.ndarray:
    """Return the transmittance `(n,)` between the camera and each point."""
    along = points[:, None] - (AHEAD * spacing)[:, None] * views[:, None]
    return np.exp(-_look_up(grid, along, spacing, bound).sum(1) * 2 * spacing)


def _look_up(grid: np.ndarray, points: np.ndarray, spacing: float, bound: float) -> np.ndarray:
    """Return trilinear densities `(...,)` at `points` `(..., 3)`; 0 outside the cube."""
    at = ((points.reshape(-1, 3) + bound) / spacing).T
    return ndimage.map_coordinates(grid, at, order=1, mode="constant").reshape(points.shape[:-1])
