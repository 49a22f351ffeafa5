"""Level sets of a field as closed, smoothed triangle meshes without floaters or hollows."""

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
from skimage.measure import marching_cubes

from .grid import Density, in_chunks
from .mesh_check import folded_vertices
from .opacity import DIMMED


FLOATER_SHARE = 0.02  # fraction of the largest volume below which separate pieces are dropped
PART_SHARE = 0.0005  # fraction of the largest volume below which pieces are dropped even next to the body
REACH = np.arange(-1.5, 2.01, 0.25, dtype=np.float32)  # search range for the surface along the normal, in cells
HARD = (2.0, 4.0)  # optical depths along `REACH`: a surface is partly hard above the first, fully above the second


def level_set(level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extract the zero level of a grid by marching cubes (Lorensen and Cline, 1987), closed at the faces of the cube.

    Args:
        level: `(n, n, n)`, positive inside, at most 1/2 in magnitude.

    Returns:
        Vertices `(V, 3)` in units of the padded grid (see `to_world`), faces `(F, 3)` wound outward, and the padded
        grid.
    """
    level = np.pad(level, 1, constant_values=-0.5)
    # A vertex at a grid point would coincide with neighboring vertices and pinch the surface.
    level = np.where(np.abs(level) < 1e-3, np.where(level > 0, np.float32(1e-3), np.float32(-1e-3)), level)
    index, faces, _, _ = marching_cubes(level, 0.0, gradient_direction="ascent")
    return index.astype(np.float64), faces.astype(np.int64), level


def to_world(index: np.ndarray, n: int, bound: float) -> np.ndarray:
    """Convert positions in the padded grid of `n` cells per side to world units, inside the cube."""
    # Vertices in the padding keep 1 % of their distance to the cube, so that vertices at its edges stay distinct.
    inside = index.clip(1, n + 1)
    return (inside + 0.01 * (index - inside) - 1) * (2 * bound / n) - bound


def on_threshold(index: np.ndarray, level: np.ndarray, density: Density, threshold: float, bound: float) -> np.ndarray:
    """Move vertices along grid edges to where the field crosses the threshold. Return vertices in world units."""
    n = len(level) - 3
    low, high = np.floor(index).astype(np.int64), np.ceil(index).astype(np.int64)
    on_edge = (high - low).sum(1) == 1  # vertices inside ambiguous cells do not move
    low, high = low[on_edge], high[on_edge]
    at_low, at_high = level[tuple(low.T)], level[tuple(high.T)]
    left, right = np.zeros(len(low), np.float32), np.ones(len(low), np.float32)
    # Three rounds of the Illinois variant of regula falsi along the grid edge.
    for _ in range(3):
        share = left + (right - left) * at_low / (at_low - at_high)
        values = in_chunks(density, to_world(low + share[:, None] * (high - low), n, bound))
        values = values / (values + threshold) - 0.5
        same = (values > 0) == (at_low > 0)
        left, right = np.where(same, share, left), np.where(same, right, share)
        at_low, at_high = np.where(same, values, at_low / 2), np.where(same, at_high / 2, values)
    share = (left + (right - left) * at_low / (at_low - at_high)).clip(1e-3, 1 - 1e-3)
    index = index.copy()
    index[on_edge] = low + share[:, None] * (high - low)
    return to_world(index, n, bound)


def on_optical_depth(
    vertices: np.ndarray, faces: np.ndarray, density: Density, bound: float, cells: int
) -> np.ndarray:
    """Move the vertices of a hard surface along their normals to where rays from outside are dimmed.

    The density of a hard surface rises within one cell, so the grid locates the surface only to within one cell. Soft
    surfaces and closed holes do not move.

    Args:
        vertices: `(V, 3)` world units, of a surface from a grid with `cells` cells per side.
        faces: `(F, 3)` vertex indices.
        density: Density of the field.
        bound: Half the side of the cube, world units.
        cells: Cells per side.
    """
    spacing, normals = 2 * bound / cells, vertex_normals(vertices, faces)
    points = vertices[:, None] - (REACH * spacing)[:, None] * normals[:, None]  # (V, n, 3), inward
    values = in_chunks(density, points.clip(-bound, bound).reshape(-1, 3)).reshape(len(vertices), -1)
    values *= (np.abs(points) <= bound).all(-1)
    passed = np.cumsum((values[:, 1:] + values[:, :-1]) / 2 * np.diff(REACH) * spacing, axis=1)
    passed = np.pad(passed, ((0, 0), (1, 0)))  # (V, n), rising from 0
    # At most half of the total optical depth, so that no vertex crosses the middle of a thin sheet.
    target = np.minimum(DIMMED, passed[:, -1:] / 2)
    after = (passed < target).sum(1).clip(1, len(REACH) - 1)[:, None]
    below, above = np.take_along_axis(passed, after - 1, 1), np.take_along_axis(passed, after, 1)
    share = ((target - below) / np.maximum(above - below, 1e-12)).clip(0, 1)
    shift = REACH[after - 1] + share * (REACH[after] - REACH[after - 1])
    # A surface is hard if the optical depth rises from nearly 0 to a high value within `REACH`.
    hardness = ((passed[:, -1:] - HARD[0]) / (HARD[1] - HARD[0])).clip(0, 1)
    return vertices - (shift.clip(-1, 1) * hardness * spacing) * normals


def unfolded(vertices: np.ndarray, faces: np.ndarray, rounds: int = 20) -> np.ndarray:
    """Smooth the surroundings of folds until no fold is left, for at most `rounds` rounds."""
    vertices = vertices.copy()
    for _ in range(rounds):
        at = folded_vertices(vertices, faces)
        if not len(at):
            break
        around = np.zeros(len(vertices), bool)
        around[at] = True
        for _ in range(2):
            around[faces[around[faces].any(1)]] = True
        mean = neighbor_mean(len(vertices), faces)
        vertices[around] += 0.5 * (mean @ vertices - vertices)[around]
    return vertices


def without_floaters(vertices: np.ndarray, faces: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Keep the pieces with at least `FLOATER_SHARE` of the largest volume, and smaller parts next to these pieces.

    Hollows have a negative volume and are dropped. A smaller part is kept if it has at least `PART_SHARE` of the
    largest volume and is less than `near` from a kept piece.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(edges), bool), tuple(edges.T)), shape=(len(vertices),) * 2)
    count, piece = sparse.csgraph.connected_components(graph, directed=False)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    volume = np.bincount(piece[faces[:, 0]], (a * np.cross(b, c)).sum(1) / 6, minlength=count)
    kept = volume >= FLOATER_SHARE * volume.max()
    parts = np.flatnonzero(~kept & (volume >= PART_SHARE * volume.max()))
    if len(parts):
        body = cKDTree(vertices[kept[piece]])
        for part in parts:
            kept[part] = body.query(vertices[piece == part], distance_upper_bound=near)[0].min() < near
    return used_only(vertices, faces[kept[piece[faces[:, 0]]]])


def used_only(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the vertices without triangles."""
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def smoothed(vertices: np.ndarray, faces: np.ndarray, rounds: int) -> np.ndarray:
    """Smooth a mesh (Taubin, "A signal processing approach to fair surface design", 1995).

    Each round shrinks the mesh, then expands the mesh slightly more.
    """
    mean = neighbor_mean(len(vertices), faces)
    for _ in range(rounds):
        for step in (0.5, -0.53):
            vertices = vertices + step * (mean @ vertices - vertices)
    return vertices


def neighbor_mean(n_vertices: int, faces: np.ndarray) -> sparse.csr_matrix:
    """Return the matrix `(V, V)` that maps vertex values to the means over neighboring vertices."""
    # Each edge of a closed mesh occurs once in each direction, so the adjacency matrix is symmetric.
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    neighbors = sparse.csr_matrix((np.ones(len(edges)), tuple(edges.T)), shape=(n_vertices, n_vertices))
    return sparse.diags(1 / np.asarray(neighbors.sum(1)).ravel()) @ neighbors


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit vertex normals `(V, 3)` float32, the area-weighted means of the normals of adjacent triangles.

    Weights are areas and not angles: simplification leaves large triangles on flat faces, which must stay flat when
    shaded. Where the normals cancel each other, only the largest triangle counts.
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    weighted = np.cross(b - a, c - a)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(weighted[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=1
    )
    size = np.linalg.norm(weighted, axis=1)
    total = np.bincount(faces.ravel(), np.repeat(size, 3), minlength=len(vertices))
    cancelled = np.linalg.norm(sums, axis=1) <= 1e-6 * total
    if cancelled.any():
        order = np.argsort(size)
        largest = np.zeros(len(vertices), np.int64)
        largest[faces[order].ravel()] = np.repeat(order, 3)  # the last value, of the largest triangle, stays
        sums[cancelled] = weighted[largest[cancelled]]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-300), (0.0, 0.0, 1.0)).astype(np.float32)
