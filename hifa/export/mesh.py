"""The surface of a radiance field as a triangle mesh: closed, wound outwards, no finer than asked for, coloured.

The field is two callables, so this works for anything that has a density and a colour:

    density(points (n, 3)) -> (n,)                     per world unit
    colour(points (n, 3), directions (n, 3)) -> (n, 3) RGB in [0, 1]; directions are unit, from the camera to the point

Both are given float32 tensors on the CPU, without a graph, at most `grid.CHUNK` points at a time; they move them to
their own device. World axes: z up, front along +x, the object inside [-bound, bound]^3.
"""

import math
import warnings
from dataclasses import dataclass, field

import numpy as np

from .check import MeshFaults, faulty_vertices, find_faults
from .decimate import decimated
from .grid import Colour, Density, density_grid, in_chunks
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
from .views import DEPTHS, pictured_colour


REPAIRS = 4  # attempts to extract a two-manifold surface
NEAR = 0.1  # of half the side of the cube: how far a part may hover beside the body


class EmptyFieldError(ValueError):
    """The field has no surface: its density is below the threshold everywhere, or above it everywhere."""


class MeshWarning(UserWarning):
    """A mesh is not what was asked for: it has faults, which `Mesh.faults` counts, or too many triangles."""


@dataclass(frozen=True)
class Mesh:
    """A closed triangle mesh in world axes (z up, front along +x).

    Args:
        vertices: `(V, 3)` float32, world units.
        faces: `(F, 3)` int32, counter-clockwise seen from outside.
        normals: `(V, 3)` float32, unit, outward.
        colours: `(V, 3)` float32 RGB in [0, 1], as pictures show them.
        seen: `(V, 3)` float32, world units: where a ray that arrives against the normal meets half of what dims it.
            Pictures take their colour from there, a little below the surface of a soft field.
        faults: What is wrong with the mesh; false for a closed, two-manifold mesh with unit normals and without folds.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    seen: np.ndarray
    faults: MeshFaults = field(default_factory=MeshFaults)


def extract_mesh(
    density: Density,
    colour: Colour,
    bound: float,
    *,
    resolution: int = 128,
    threshold: float | None = None,
    max_faces: int | None = None,
    smooth: int = 10,
) -> Mesh:
    """Extract the surface of a field by marching cubes (Lorensen and Cline, 1987).

    By default the surface is that of the solid that pictures of the field show, see `opacity.solid_level`: soft parts
    are kept and small holes closed. Pieces under 2 % of the largest one's volume are dropped, and so are hollows that
    no ray from outside can reach. A field that reaches the faces of the cube is closed there.

    Args:
        density, colour: The field, see the module.
        bound: Half the side of the cube, world units.
        resolution: Cells along a side. Powers of two times 64 or less are fastest.
        threshold: Draw the surface where the density crosses this value, per world unit, instead.
        max_faces: Simplify to at most this many triangles.
        smooth: Rounds of Taubin smoothing, which takes noise away but no volume; 0 keeps the exact level set.

    Raises:
        EmptyFieldError: If there is no surface.
        ValueError: If the field is not finite.

    Warns:
        MeshWarning: If the mesh has faults that could not be repaired, which are in its `faults`, or if it has more
            triangles than `max_faces` because fewer would change its topology.
    """
    grid = density_grid(density, bound, resolution, threshold)
    if threshold is None:
        level = solid_level(grid, bound)
    else:
        level = grid / (grid + threshold) - 0.5  # bounded, so that interpolation works
    _check_surface(grid, level, threshold, bound)
    vertices, faces = _surface(level, grid, density, threshold, bound)
    vertices = unfolded(smoothed(vertices, faces, smooth), faces) if smooth else vertices
    if max_faces is not None and len(faces) > max_faces:
        vertices, faces = decimated(vertices, faces, max_faces)
        if len(faces) > max_faces:
            warnings.warn(
                f"The mesh has {len(faces)} triangles, more than max_faces={max_faces}: fewer would change its "
                "topology.",
                MeshWarning,
                stacklevel=2,
            )
    vertices = vertices.astype(np.float32)
    normals = vertex_normals(vertices, faces)
    faults = find_faults(vertices, faces, normals)
    if faults:
        warnings.warn(f"The mesh could not be repaired and has {faults}.", MeshWarning, stacklevel=2)
    seen = _seen_points(density, vertices, normals, 2 * bound / resolution, bound)
    colours = pictured_colour(grid, colour, vertices, normals, bound)
    return Mesh(vertices, faces.astype(np.int32), normals, colours, seen, faults)


def _surface(
    level: np.ndarray, grid: np.ndarray, density: Density, threshold: float | None, bound: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices, in world units, and faces of the level set without floaters, two-manifold if at all possible."""
    cells = len(level) - 1
    for _ in range(REPAIRS):
        index, faces, padded = level_set(level)
        bad = faulty_vertices(index, faces)
        if not len(bad):
            break
        # Sheets that touch in a point or an edge: solid there, they are one.
        corners = (
            np.floor(index[bad]).astype(np.int64)[:, None] - 1 + np.stack(np.indices((2, 2, 2)), -1).reshape(-1, 3)
        )
        corners = corners.reshape(-1, 3).clip(0, cells)
        level[tuple(corners.T)] = np.maximum(level[tuple(corners.T)], 0.1)
    if threshold is not None:
        return without_floaters(on_threshold(index, padded, density, threshold, bound), faces, NEAR * bound)
    vertices, faces = without_floaters(to_world(index, cells, bound), faces, NEAR * bound)
    return on_optical_depth(vertices, faces, density, bound, cells), faces


def _check_surface(grid: np.ndarray, level: np.ndarray, threshold: float | None, bound: float) -> None:
    drawn = "where pictures of the field are opaque" if threshold is None else f"at {threshold:.3g}"
    # Even fog is opaque along a line that is long enough. A surface dims light within half the side of the cube.
    fog = threshold is None and grid.max() * bound < math.log(2)
    if level.max() <= 0 or fog:
        raise EmptyFieldError(
            f"The field is empty: its largest density inside [-{bound:g}, {bound:g}]^3 is {grid.max():.3g} and the "
            f"surface is drawn {drawn}. Optimise for more steps, or pass a lower threshold."
        )
    # Without a threshold: a solid at the whole surface of the cube shows no object.
    faces = (
        level
        if threshold is not None
        else np.concatenate([level[[0, -1]].ravel(), level[:, [0, -1]].ravel(), level[:, :, [0, -1]].ravel()])
    )
    if faces.min() > 0:
        raise EmptyFieldError(
            f"The field is opaque everywhere inside [-{bound:g}, {bound:g}]^3: its densities are {grid.min():.3g} to "
            f"{grid.max():.3g} and the surface is drawn {drawn}. Optimise for more steps, or pass a higher threshold."
        )


def _seen_points(
    density: Density, vertices: np.ndarray, normals: np.ndarray, spacing: float, bound: float
) -> np.ndarray:
    """Where a ray against the normal has met half of the opacity along `views.DEPTHS`."""
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
    """Optical depths `(V, n)` that rays through `points` have passed at `depths` `(n,)` beyond them."""
    along = points[:, None] + depths[:, None] * directions[:, None]
    values = in_chunks(density, along.clip(-bound, bound).reshape(-1, 3)).reshape(len(points), -1)
    values *= (np.abs(along) <= bound).all(-1)
    return np.pad(np.cumsum((values[:, 1:] + values[:, :-1]) / 2 * np.diff(depths), axis=1), ((0, 0), (1, 0)))
