"""Extraction of the surface of a radiance field as a closed, colored triangle mesh.

The field is given as two callables, so extraction works for any object with a density and a color:

    density(points (n, 3)) -> (n,)                     per world unit
    color(points (n, 3), directions (n, 3)) -> (n, 3) RGB in [0, 1]; directions are unit, from the camera to the point

Both callables get float32 CPU tensors without a graph, with at most `grid.CHUNK` points per call. The callables move
the tensors to their own device. World axes: z up, front along +x, the object inside [-bound, bound]^3.
"""

import math
import warnings
from dataclasses import dataclass, field

import numpy as np

from .decimate import decimated
from .grid import Color, Density, density_grid, in_chunks
from .mesh_check import MeshFaults, faulty_vertices, find_faults
from .opacity import solid_level
from .surface import (
    level_set,
    on_optical_depth,
    on_threshold,
    smoothed,
    to_world,
    unfolded,
    vertex_normals,
    without_floaters,
)
from .views import DEPTHS, pictured_color


REPAIRS = 4  # attempts to extract a two-manifold surface
NEAR = 0.1  # largest distance of a small part from the body, as a fraction of half the side of the cube


class EmptyFieldError(ValueError):
    """Error for a field without a surface: the field is either empty or opaque everywhere."""


class MeshWarning(UserWarning):
    """Warning about a mesh with faults, see `Mesh.faults`, or with more triangles than `max_faces`."""


@dataclass(frozen=True)
class Mesh:
    """Closed triangle mesh in world axes (z up, front along +x).

    Args:
        vertices: `(V, 3)` float32, world units.
        faces: `(F, 3)` int32 vertex indices, counterclockwise when viewed from outside.
        normals: `(V, 3)` float32 unit outward normals.
        colors: `(V, 3)` float32 RGB in [0, 1], the colors that renders show.
        seen: `(V, 3)` float32, world units: the point at which a ray that enters against the normal has accumulated
            half of its opacity. Renders take their colors from this depth, a little below the surface of a soft field.
        faults: Faults of the mesh. Evaluates to false for a closed, two-manifold mesh with unit normals and no folds.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    seen: np.ndarray
    faults: MeshFaults = field(default_factory=MeshFaults)


def extract_mesh(
    density: Density,
    color: Color,
    bound: float,
    *,
    resolution: int = 128,
    threshold: float | None = None,
    max_faces: int | None = None,
    smooth: int = 10,
) -> Mesh:
    """Extract the surface of a field by marching cubes (Lorensen and Cline, 1987).

    By default, the surface bounds the solid that is visible in renders of the field, see `opacity.solid_level`. Soft
    parts are kept and small holes are closed. Separate pieces under 2 % of the volume of the largest piece are
    dropped. Hollows that no ray from outside can reach are dropped, too. A field that reaches the faces of the cube is
    closed there.

    Args:
        density: Density of the field, see the module docstring.
        color: Color of the field, see the module docstring.
        bound: Half the side of the cube, world units.
        resolution: Cells per side. A power of two times a number of at most 64 is fastest.
        threshold: Density at the surface, per world unit, in place of the default surface.
        max_faces: Largest number of triangles. A mesh with more triangles is simplified.
        smooth: Rounds of Taubin smoothing, which removes noise but no volume. 0 keeps the exact level set.

    Raises:
        EmptyFieldError: If the field has no surface.
        ValueError: If the field returns NaN or infinity.

    Warns:
        MeshWarning: If the mesh has faults that could not be repaired, see `Mesh.faults`, or has more triangles than
            `max_faces` because fewer triangles would change the topology or the shape.
    """
    grid = density_grid(density, bound, resolution, threshold)
    # With a threshold, the level is mapped to [-1/2, 1/2], so that interpolation along grid edges is accurate.
    level = solid_level(grid, bound) if threshold is None else grid / (grid + threshold) - 0.5
    _check_surface(grid, level, threshold, bound)
    vertices, faces = _surface(level, grid, density, threshold, bound)
    vertices = unfolded(smoothed(vertices, faces, smooth), faces) if smooth else vertices
    if max_faces is not None and len(faces) > max_faces:
        vertices, faces = decimated(vertices, faces, max_faces)
        if len(faces) > max_faces:
            warnings.warn(
                f"The mesh has {len(faces)} triangles, more than max_faces={max_faces}: fewer would change its "
                "topology or shape.",
                MeshWarning,
                stacklevel=2,
            )
    vertices = vertices.astype(np.float32)
    normals = vertex_normals(vertices, faces)
    faults = find_faults(vertices, faces, normals)
    if faults:
        warnings.warn(f"The mesh could not be repaired and has {faults}.", MeshWarning, stacklevel=2)
    seen = _seen_points(density, vertices, normals, 2 * bound / resolution, bound)
    colors = pictured_color(grid, color, vertices, normals, bound)
    return Mesh(vertices, faces.astype(np.int32), normals, colors, seen, faults)


def _surface(
    level: np.ndarray, grid: np.ndarray, density: Density, threshold: float | None, bound: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices in world units and faces of the level set without floaters, two-manifold if possible."""
    cells = len(level) - 1
    for _ in range(REPAIRS):
        index, faces, padded = level_set(level)
        bad = faulty_vertices(index, faces)
        if not len(bad):
            break
        # Sheets touch at a point or an edge. Make the corners around the contact solid to merge the sheets.
        corners = np.floor(index[bad]).astype(np.int64)[:, None] - 1 + np.argwhere(np.ones((2, 2, 2)))
        corners = corners.reshape(-1, 3).clip(0, cells)
        level[tuple(corners.T)] = np.maximum(level[tuple(corners.T)], 0.1)
    if threshold is not None:
        return without_floaters(on_threshold(index, padded, density, threshold, bound), faces, NEAR * bound)
    vertices, faces = without_floaters(to_world(index, cells, bound), faces, NEAR * bound)
    return on_optical_depth(vertices, faces, density, bound, cells), faces


def _check_surface(grid: np.ndarray, level: np.ndarray, threshold: float | None, bound: float) -> None:
    drawn = "where renders of the field are opaque" if threshold is None else f"at {threshold:.3g}"
    # Thin fog is opaque along a long line, too. A surface absorbs half of the light within half the side of the cube.
    fog = threshold is None and grid.max() * bound < math.log(2)
    if level.max() <= 0 or fog:
        raise EmptyFieldError(
            f"The field is empty: its largest density inside [-{bound:g}, {bound:g}]^3 is {grid.max():.3g} and the "
            f"surface is drawn {drawn}. Optimize for more steps, or use a lower threshold."
        )
    # Without a threshold, a solid that covers all faces of the cube shows no object.
    faces = (
        level
        if threshold is not None
        else np.concatenate([level[[0, -1]].ravel(), level[:, [0, -1]].ravel(), level[:, :, [0, -1]].ravel()])
    )
    if faces.min() > 0:
        raise EmptyFieldError(
            f"The field is opaque everywhere inside [-{bound:g}, {bound:g}]^3: its densities are {grid.min():.3g} to "
            f"{grid.max():.3g} and the surface is drawn {drawn}. Optimize for more steps, or use a higher threshold."
        )


def _seen_points(
    density: Density, vertices: np.ndarray, normals: np.ndarray, spacing: float, bound: float
) -> np.ndarray:
    """Return the points where rays against the normals have accumulated half of their opacity over `views.DEPTHS`."""
    depths = DEPTHS * np.float32(spacing)  # (n,) along the ray, 0 on the surface
    passed = _passed(density, vertices, -normals, depths, bound)
    absorbed = 1 - np.exp(-passed)  # (V, n), rising from 0
    half = absorbed[:, -1:] / 2
    after = (absorbed < half).sum(1).clip(1, len(depths) - 1)[:, None]
    below, above = np.take_along_axis(absorbed, after - 1, 1), np.take_along_axis(absorbed, after, 1)
    share = (half - below) / np.maximum(above - below, 1e-12)
    depth = depths[after - 1] + share * (depths[after] - depths[after - 1])  # (V, 1)
    return (vertices - depth * normals).clip(-bound, bound).astype(np.float32)


def _passed(
    density: Density, points: np.ndarray, directions: np.ndarray, depths: np.ndarray, bound: float
) -> np.ndarray:
    """Return the optical depths `(V, n)` of rays through `points`, from `depths[0]` to each of `depths` `(n,)`."""
    along = points[:, None] + depths[:, None] * directions[:, None]
    values = in_chunks(density, along.clip(-bound, bound).reshape(-1, 3)).reshape(len(points), -1)
    values *= (np.abs(along) <= bound).all(-1)
    return np.pad(np.cumsum((values[:, 1:] + values[:, :-1]) / 2 * np.diff(depths), axis=1), ((0, 0), (1, 0)))
