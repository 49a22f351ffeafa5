"""The surface of a radiance field as a triangle mesh: closed, wound outwards, no finer than asked for, coloured.

The field is two callables, so this works for anything that has a density and a colour:

    density(points (n, 3)) -> (n,)                     per world unit
    colour(points (n, 3), directions (n, 3)) -> (n, 3) RGB in [0, 1]; directions are unit, from the camera to the point

Both are given float32 tensors on the CPU, without a graph, at most `grid.CHUNK` points at a time; they move them to
their own device. World axes: z up, front along +x, the object inside [-bound, bound]^3.
"""

from dataclasses import dataclass

import fast_simplification
import numpy as np
import trimesh
from scipy import sparse
from skimage.measure import marching_cubes

from .grid import Colour, Density, density_grid, in_chunks


FLOATER_SHARE = 0.02  # of the largest piece's volume: smaller pieces are dropped


class EmptyFieldError(ValueError):
    """The field has no surface: its density is below the threshold everywhere, or above it everywhere."""


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
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    seen: np.ndarray


def extract_mesh(
    density: Density,
    colour: Colour,
    bound: float,
    *,
    resolution: int = 128,
    threshold: float | None = None,
    max_faces: int | None = None,
    smooth: int = 4,
) -> Mesh:
    """The surface on which the density crosses `threshold`, by marching cubes (Lorensen and Cline, 1987).

    Pieces under 2 % of the largest one's volume are dropped, and so are hollows that no ray from outside can reach. A
    field that reaches the faces of the cube is closed there.

    Args:
        density, colour: The field, see the module.
        bound: Half the side of the cube, world units.
        resolution: Cells along a side. Powers of two times 64 or less are fastest.
        threshold: Density of the surface, per world unit. By default the one whose solid has the outline that pictures
            of the field have (`grid.half_opaque_threshold`); for a hard surface this is about 14 / bound.
        max_faces: Simplify to at most this many triangles, by quadric error (Garland and Heckbert, 1997).
        smooth: Rounds of Taubin smoothing, which takes noise away but no volume; 0 keeps the exact level set.

    Raises:
        EmptyFieldError: If no density exceeds the threshold, or if all do.
        ValueError: If the field is not finite.
    """
    grid, threshold = density_grid(density, bound, resolution, threshold)
    _check_surface(grid, threshold, bound)
    vertices, faces = _level_set(grid, density, threshold, bound)
    vertices, faces = _without_floaters(vertices, faces)
    vertices = _smoothed(vertices, faces, smooth)
    if max_faces is not None and len(faces) > max_faces:
        vertices, faces = fast_simplification.simplify(
            vertices.astype(np.float32), faces.astype(np.int32), target_count=max_faces
        )
        vertices, faces = _clean(vertices, faces)
    normals = vertex_normals(vertices, faces)
    seen = _seen_points(density, vertices, normals, 2 * bound / resolution, bound)
    colours = seen_colour(colour, seen, normals)
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32), normals, colours, seen)


def _check_surface(grid: np.ndarray, threshold: float, bound: float) -> None:
    if grid.max() <= threshold:
        raise EmptyFieldError(
            f"The field is empty: its largest density inside [-{bound:g}, {bound:g}]^3 is {grid.max():.3g} and the "
            f"surface is drawn at {threshold:.3g}. Optimise for more steps, or pass a lower threshold."
        )
    if grid.min() > threshold:
        raise EmptyFieldError(
            f"The field is opaque everywhere inside [-{bound:g}, {bound:g}]^3: its densities are {grid.min():.3g} to "
            f"{grid.max():.3g} and the surface is drawn at {threshold:.3g}. Optimise for more steps, or pass a higher "
            "threshold."
        )


def _level_set(grid: np.ndarray, density: Density, threshold: float, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes whose vertices lie where the field itself, not its interpolation, crosses the threshold."""
    spacing = 2 * bound / (len(grid) - 1)
    # Density spans orders of magnitude; s / (s + threshold) is 1/2 on the surface and bounded, so that interpolation
    # works. A layer of zeros closes what reaches the faces of the cube.
    level = np.pad(grid / (grid + threshold), 1) - 0.5
    index, faces, _, _ = marching_cubes(level, 0.0, gradient_direction="ascent", allow_degenerate=False)
    low, high = np.floor(index).astype(np.int64), np.ceil(index).astype(np.int64)
    on_edge = (high - low).sum(1) == 1  # a few vertices of ambiguous cells lie inside the cell: those stay
    low, high = low[on_edge], high[on_edge]
    at_low, at_high = level[tuple(low.T)], level[tuple(high.T)]
    left, right = np.zeros(len(low), np.float32), np.ones(len(low), np.float32)
    # Three rounds of the Illinois form of regula falsi along the grid edge.
    for _ in range(3):
        share = left + (right - left) * at_low / (at_low - at_high)
        points = low + share[:, None] * (high - low)
        values = in_chunks(density, np.clip((points - 1) * spacing - bound, -bound, bound))
        values = values / (values + threshold) - 0.5
        same = (values > 0) == (at_low > 0)
        left, right = np.where(same, share, left), np.where(same, right, share)
        at_low, at_high = np.where(same, values, at_low / 2), np.where(same, at_high / 2, values)
    index[on_edge] = low + (left + (right - left) * at_low / (at_low - at_high))[:, None] * (high - low)
    return _clean(np.clip((index - 1) * spacing - bound, -bound, bound), faces)


def _clean(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices in the same place; drop triangles without area and vertices without triangles."""
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.merge_vertices()
    mesh.update_faces(mesh.nondegenerate_faces())
    mesh.remove_unreferenced_vertices()
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def _without_floaters(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the pieces with at least `FLOATER_SHARE` of the largest volume; a hollow has a negative one."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(edges), bool), tuple(edges.T)), shape=(len(vertices),) * 2)
    count, piece = sparse.csgraph.connected_components(graph, directed=False)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = np.bincount(piece[faces[:, 0]], (a * np.cross(b, c)).sum(1) / 6, minlength=count)
    kept = faces[(volume >= FLOATER_SHARE * volume.max())[piece[faces[:, 0]]]]
    used, faces = np.unique(kept, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def _smoothed(vertices: np.ndarray, faces: np.ndarray, rounds: int) -> np.ndarray:
    """Taubin, "A signal processing approach to fair surface design" (1995): shrink, then grow a little more."""
    # Each edge of a closed mesh occurs once in each direction, so these entries make a symmetric adjacency.
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    neighbours = sparse.csr_matrix((np.ones(len(edges)), tuple(edges.T)), shape=(len(vertices),) * 2)
    mean = sparse.diags(1 / np.asarray(neighbours.sum(1)).ravel()) @ neighbours
    for _ in range(rounds):
        for step in (0.5, -0.53):
            vertices = vertices + step * (mean @ vertices - vertices)
    return vertices


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals `(V, 3)` float32, the mean over the triangles around each vertex, weighted by area.

    By area, not angle: simplification leaves large triangles on flat faces, and those must stay flat when shaded.
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    weighted = np.cross(b - a, c - a)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(weighted[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=1
    )
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def _seen_points(
    density: Density, vertices: np.ndarray, normals: np.ndarray, spacing: float, bound: float
) -> np.ndarray:
    """Where a ray against the normal has met half of the opacity between a cell above the surface and four below."""
    depths = np.arange(-1, 4.25, 0.5, dtype=np.float32) * spacing  # (n,) along the ray, 0 on the surface
    points = vertices[:, None] - depths[:, None] * normals[:, None]  # (V, n, 3)
    values = in_chunks(density, points.clip(-bound, bound).reshape(-1, 3)).reshape(len(vertices), -1)
    passed = np.cumsum((values[:, 1:] + values[:, :-1]) / 2 * np.diff(depths), axis=1)
    absorbed = np.pad(1 - np.exp(-passed), ((0, 0), (1, 0)))  # (V, n), rising from 0
    half = absorbed[:, -1:] / 2
    after = (absorbed < half).sum(1).clip(1, len(depths) - 1)[:, None]
    below, above = np.take_along_axis(absorbed, after - 1, 1), np.take_along_axis(absorbed, after, 1)
    share = (half - below) / np.maximum(above - below, 1e-12)
    depth = depths[after - 1] + share * (depths[after] - depths[after - 1])  # (V, 1)
    return (vertices - depth * normals).clip(-bound, bound).astype(np.float32)


def seen_colour(colour: Colour, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colour `(n, 3)` of surface points: the mean over cameras straight above and 45 degrees off on three sides."""
    views = [-normals] + [_tilted(normals, turn) for turn in (0.0, 120.0, 240.0)]
    return np.mean([in_chunks(colour, points, view) for view in views], axis=0).clip(0, 1).astype(np.float32)


def _tilted(normals: np.ndarray, turn_deg: float) -> np.ndarray:
    """Directions `(n, 3)` towards the surface from 45 degrees off the normal, at an angle `turn_deg` about it."""
    # Any vector that is not parallel to the normal: the unit axis on which the normal is smallest.
    helper = np.eye(3, dtype=np.float32)[np.abs(normals).argmin(1)]
    u = np.cross(normals, helper)
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-30)
    v = np.cross(normals, u)
    turn = np.radians(turn_deg)
    return -((normals + np.cos(turn) * u + np.sin(turn) * v) / np.sqrt(2)).astype(np.float32)
