"""Signed distance functions of Toybox. A scene is a list of colored parts, each a single primitive.

Distances are negative inside. Units are world units, z points up. Sphere tracing evaluates the distance hundreds of
times per pixel. The distance functions are therefore compiled by numba, and parts are packed into plain arrays.

Primitives follow Inigo Quilez, "Distance functions" (https://iquilezles.org/articles/distfunctions).
"""

from dataclasses import dataclass, field

import numba
import numpy as np


ELLIPSOID, BOX, CYLINDER, CONE, TORUS, CAPSULE, PRISM = range(7)
UNION, CUT = range(2)


@dataclass(frozen=True)
class Part:
    """One primitive of a scene.

    Args:
        primitive: One of `ELLIPSOID` (three radii), `BOX` (three half-sizes, corner radius), `CYLINDER` (radius,
            half-height, edge radius), `CONE` (bottom radius, top radius, half-height), `TORUS` (ring radius, tube
            radius), `CAPSULE` (radius, half-length) and `PRISM` (half-width along y at the bottom, half-height,
            half-length along x: a roof). The axis of symmetry is z.
        size: Up to four numbers as listed for the primitive, world units.
        center: `(3,)` position of the center.
        color: `(3,)` RGB in [0, 1].
        turn: Rotation about x, then y, then z, in degrees.
        operation: `UNION` adds the part. `CUT` removes its volume from all parts listed before.
    """

    primitive: int
    size: tuple[float, ...]
    center: tuple[float, ...]
    color: tuple[float, ...]
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    operation: int = UNION


@dataclass(frozen=True)
class Shape:
    """Parts packed into arrays for the compiled functions. `pack` creates a shape."""

    kind: np.ndarray = field(repr=False)  # (n,) primitive
    operation: np.ndarray = field(repr=False)  # (n,)
    size: np.ndarray = field(repr=False)  # (n, 4)
    center: np.ndarray = field(repr=False)  # (n, 3)
    rotation: np.ndarray = field(repr=False)  # (n, 3, 3) world -> part
    color: np.ndarray = field(repr=False)  # (n, 3)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the fields in the order of the arguments of `distance`, with the colors at the end."""
        return self.kind, self.operation, self.size, self.center, self.rotation, self.color


def rotation_matrix(turn: tuple[float, float, float]) -> np.ndarray:
    """Return the rotation about x, then y, then z (degrees) as a `(3, 3)` matrix, part -> world."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def pack(parts: list[Part]) -> Shape:
    """Pack parts into arrays."""
    size = np.zeros((len(parts), 4), np.float32)
    for row, part in zip(size, parts, strict=True):
        row[: len(part.size)] = part.size
    return Shape(
        kind=np.array([p.primitive for p in parts], np.int32),
        operation=np.array([p.operation for p in parts], np.int32),
        size=size,
        center=np.array([p.center for p in parts], np.float32),
        rotation=np.stack([rotation_matrix(p.turn).T for p in parts]).astype(np.float32),
        color=np.array([p.color for p in parts], np.float32),
    )


def bounding_radii(shape: Shape) -> np.ndarray:
    """Return the radii `(n,)` of bounding balls of the parts, around the centers of the parts."""
    a, b, c, _ = shape.size.T.astype(np.float64)
    radii = {
        ELLIPSOID: np.maximum(np.maximum(a, b), c), BOX: np.sqrt(a * a + b * b + c * c), CYLINDER: np.hypot(a, b),
        CONE: np.hypot(np.maximum(a, b), c), TORUS: a + b, CAPSULE: a + b, PRISM: np.sqrt(a * a + b * b + c * c),
    }  # fmt: skip
    return np.stack([radii[kind] for kind in range(PRISM + 1)])[shape.kind, np.arange(len(a))]


@numba.njit(fastmath=True, cache=True, inline="always")
def _box2(u, v, hu, hv):
    """Return the distance to a rectangle with half-sizes (hu, hv) in the plane."""
    du, dv = abs(u) - hu, abs(v) - hv
    outside = np.sqrt(max(du, 0.0) ** 2 + max(dv, 0.0) ** 2)
    return outside + min(max(du, dv), 0.0)


@numba.njit(fastmath=True, cache=True)
def _ellipsoid(x, y, z, a, b, c):
    k0 = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    k1 = np.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
    return k0 * (k0 - 1.0) / max(k1, 1e-6) if k1 > 1e-6 else -min(a, min(b, c))


@numba.njit(fastmath=True, cache=True)
def _round_box(x, y, z, hx, hy, hz, r):
    dx, dy, dz = abs(x) - hx + r, abs(y) - hy + r, abs(z) - hz + r
    outside = np.sqrt(max(dx, 0.0) ** 2 + max(dy, 0.0) ** 2 + max(dz, 0.0) ** 2)
    return outside + min(max(dx, max(dy, dz)), 0.0) - r


@numba.njit(fastmath=True, cache=True)
def _cone(rho, z, bottom, top, h):
    """Return the distance to a capped cone with radius `bottom` at z = -h and `top` at z = h."""
    edge_r, edge_z = top - bottom, 2.0 * h
    cap_r = max(rho - (bottom if z < 0.0 else top), 0.0)
    cap_z = abs(z) - h
    s = ((rho - bottom) * edge_r + (z + h) * edge_z) / (edge_r * edge_r + edge_z * edge_z)
    s = min(max(s, 0.0), 1.0)
    side_r, side_z = rho - bottom - edge_r * s, z + h - edge_z * s
    inside = cap_z < 0.0 and side_r < 0.0
    distance = np.sqrt(min(cap_r * cap_r + cap_z * cap_z, side_r * side_r + side_z * side_z))
    return -distance if inside else distance


@numba.njit(fastmath=True, cache=True)
def _prism(x, y, z, half_width, half_height, half_length):
    """Return a lower bound of the distance to an isosceles triangle in the (y, z) plane, extruded along x.

    The bound is exact on the faces.
    """
    slope = np.sqrt(half_width * half_width + 4.0 * half_height * half_height)
    side = (2.0 * half_height * abs(y) + half_width * (z - half_height)) / slope
    return max(max(side, -z - half_height), abs(x) - half_length)


@numba.njit(fastmath=True, cache=True)
def _primitive(kind, size, x, y, z):
    if kind == 0:
        return _ellipsoid(x, y, z, size[0], size[1], size[2])
    if kind == 1:
        return _round_box(x, y, z, size[0], size[1], size[2], size[3])
    if kind == 6:
        return _prism(x, y, z, size[0], size[1], size[2])
    rho = np.sqrt(x * x + y * y)
    if kind == 2:
        return _box2(rho, z, size[0] - size[2], size[1] - size[2]) - size[2]
    if kind == 3:
        return _cone(rho, z, size[0], size[1], size[2])
    if kind == 4:
        return np.sqrt((rho - size[0]) ** 2 + z * z) - size[1]
    above = max(abs(z) - size[1], 0.0)
    return np.sqrt(rho * rho + above * above) - size[0]


@numba.njit(fastmath=True, cache=True)
def distance(kind, operation, size, center, rotation, x, y, z):
    """Return the signed distance from the point (x, y, z) to the scene, and the index of the nearest part."""
    best, nearest = 1e9, 0
    for i in range(kind.shape[0]):
        px, py, pz = x - center[i, 0], y - center[i, 1], z - center[i, 2]
        r = rotation[i]
        d = _primitive(
            kind[i],
            size[i],
            r[0, 0] * px + r[0, 1] * py + r[0, 2] * pz,
            r[1, 0] * px + r[1, 1] * py + r[1, 2] * pz,
            r[2, 0] * px + r[2, 1] * py + r[2, 2] * pz,
        )
        if operation[i] == 1:
            if -d > best:
                best, nearest = -d, i
        elif d < best:
            best, nearest = d, i
    return best, nearest


@numba.njit(fastmath=True, cache=True)
def distances(kind, operation, size, center, rotation, points):
    """Return the signed distances `(n,)` of `points` `(n, 3)`."""
    out = np.empty(points.shape[0], np.float32)
    for i in range(points.shape[0]):
        out[i], _ = distance(kind, operation, size, center, rotation, points[i, 0], points[i, 1], points[i, 2])
    return out


def signed_distance(shape: Shape, points: np.ndarray) -> np.ndarray:
    """Return the signed distances `(n,)` of `(n, 3)` points in world units to the surface, negative inside."""
    return distances(*shape.arrays()[:5], np.ascontiguousarray(points, np.float32))


def solid_points(parts: list[Part], resolution: int = 40, reach: float = 1.4) -> np.ndarray:
    """Return the points of a grid that lie in the solid, or within a third of a cell of the solid.

    Args:
        parts: Parts of the solid.
        resolution: Grid points per axis.
        reach: The grid covers [-reach, reach]^3.

    Returns:
        `(n, 3)` points.

    Raises:
        ValueError: If the parts enclose no volume in the grid.
    """
    axis = np.linspace(-reach, reach, resolution, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = points[signed_distance(pack(parts), points) < (axis[1] - axis[0]) / 3]
    if not len(inside):
        raise ValueError(f"The {len(parts)} parts enclose no volume in [-{reach}, {reach}]^3. Enlarge them.")
    return inside


def transform(parts: list[Part], scale: float, shift: np.ndarray) -> list[Part]:
    """Move all parts by `shift` `(3,)`, then scale them about the origin."""
    moved = []
    for p in parts:
        center = tuple(float(v) for v in (np.asarray(p.center) + shift) * scale)
        size = tuple(float(v) * scale for v in p.size)
        moved.append(Part(p.primitive, size, center, p.color, p.turn, p.operation))
    return moved
