"""Detection of mesh faults for which viewers, slicers and validators reject a mesh."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import sparse


FOLD_COSINE = -0.99  # cosine between the normals of neighboring triangles; edges sharper than 8 degrees are folds


@dataclass(frozen=True)
class MeshFaults:
    """Counts of the faults of a mesh, with vertices merged by position. A good mesh has no faults.

    Args:
        open_edges: Edges with one triangle. A closed mesh has no open edges.
        crowded_edges: Edges with more than two triangles. A two-manifold mesh has no crowded edges.
        flipped_edges: Edges whose two triangles have opposite winding.
        crowded_vertices: Vertices at which several sheets touch. A two-manifold mesh has no crowded vertices.
        doubled_faces: Triangles with the same three vertices as another triangle.
        folded_edges: Edges whose two triangles are folded onto each other, with opposite normals.
        degenerate_faces: Triangles with zero area.
        bad_normals: Vertex normals that are not finite or not of unit length.
    """

    open_edges: int = 0
    crowded_edges: int = 0
    flipped_edges: int = 0
    crowded_vertices: int = 0
    doubled_faces: int = 0
    folded_edges: int = 0
    degenerate_faces: int = 0
    bad_normals: int = 0

    @property
    def closed(self) -> bool:
        """Return whether every edge has at least two triangles."""
        return self.open_edges == 0

    @property
    def two_manifold(self) -> bool:
        """Return whether the mesh bounds a solid: each edge has two triangles and each vertex has one fan."""
        return not (self.open_edges or self.crowded_edges or self.flipped_edges or self.crowded_vertices)

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def __str__(self) -> str:
        return (
            ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in asdict(self).items() if count) or "none"
        )


def find_faults(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray | None = None) -> MeshFaults:
    """Count the faults of a mesh.

    Args:
        vertices: `(V, 3)`. Vertices at the same float32 position count as one vertex.
        faces: `(F, 3)` vertex indices.
        normals: `(V, 3)` vertex normals. By default, normals are not checked.
    """
    places, same = np.unique(np.asarray(vertices, np.float32), axis=0, return_inverse=True)
    faces = same.reshape(-1)[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    solid = faces[distinct]
    flat = np.count_nonzero(np.linalg.norm(_face_normals(places.astype(np.float64), solid), axis=1) == 0)
    edges = _edges(solid, len(places))
    bad = 0
    if normals is not None:
        lengths = np.linalg.norm(np.asarray(normals, np.float64), axis=1)
        bad = np.count_nonzero(~(np.abs(lengths - 1) < 1e-3))
    return MeshFaults(
        open_edges=len(edges.open),
        crowded_edges=len(edges.crowded),
        flipped_edges=int((edges.start[edges.first] == edges.start[edges.second]).sum()),
        crowded_vertices=len(_crowded_vertices(solid, len(places))),
        doubled_faces=len(solid) - len(np.unique(np.sort(solid, axis=1), axis=0)),
        folded_edges=int(_folded(places, solid, edges).sum()),
        degenerate_faces=int(np.count_nonzero(~distinct) + flat),
        bad_normals=int(bad),
    )


def faulty_vertices(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the vertices at which a mesh is not two-manifold.

    These are the ends of open, crowded and flipped edges, and the vertices at which several sheets touch.
    """
    edges = _edges(faces, len(vertices))
    flipped = edges.first[edges.start[edges.first] == edges.start[edges.second]]
    bad = np.concatenate([edges.open, edges.crowded, flipped])
    ends = np.concatenate([edges.start[bad], edges.end[bad], _crowded_vertices(faces, len(vertices))])
    return np.unique(ends).astype(np.int64)


def folded_vertices(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the vertices of edges whose two triangles are folded onto each other."""
    edges = _edges(faces, len(vertices))
    folded = edges.first[_folded(vertices, faces, edges)]
    return np.unique(np.concatenate([edges.start[folded], edges.end[folded]]))


@dataclass(frozen=True)
class _Edges:
    """Sides of F triangles, `(3 F,)`, grouped by edge.

    Args:
        start, end: Vertices of each side, in the order of its triangle.
        open, crowded: One side of each edge with one triangle, and of each edge with more than two triangles.
        first, second: The two sides of each edge with two triangles.
    """

    start: np.ndarray
    end: np.ndarray
    open: np.ndarray
    crowded: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _edges(faces: np.ndarray, n_vertices: int) -> _Edges:
    start, end = faces.T.ravel(), faces.T[[1, 2, 0]].ravel()
    key = np.minimum(start, end).astype(np.int64) * n_vertices + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    _, at, count = np.unique(key[order], return_index=True, return_counts=True)
    pairs = at[count == 2]
    return _Edges(start, end, order[at[count == 1]], order[at[count > 2]], order[pairs], order[pairs + 1])


def _folded(vertices: np.ndarray, faces: np.ndarray, edges: _Edges) -> np.ndarray:
    """Return, for each edge with two triangles, whether the triangles are folded onto each other."""
    normals = _face_normals(vertices.astype(np.float64), faces)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    return (normals[edges.first % len(faces)] * normals[edges.second % len(faces)]).sum(1) < FOLD_COSINE


def _face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def _crowded_vertices(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """Return the vertices whose triangles form more than one fan.

    Two corners of a vertex are connected if their triangles share an edge at the vertex. Each connected component is
    one fan.
    """
    n = len(faces)
    corner = np.arange(3 * n).reshape(n, 3)
    ends, corners = [], []
    for k in range(3):
        for other in ((k + 1) % 3, (k + 2) % 3):
            ends.append(faces[:, k].astype(np.int64) * n_vertices + faces[:, other])
            corners.append(corner[:, k])
    ends, corners = np.concatenate(ends), np.concatenate(corners)
    _, spoke = np.unique(ends, return_inverse=True)
    # Corners and spokes form a bipartite graph. A spoke is a pair of a vertex and one of its edges.
    size = 3 * n + spoke.max(initial=-1) + 1
    graph = sparse.coo_matrix((np.ones(len(corners), bool), (corners, 3 * n + spoke)), shape=(size, size))
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    fans = np.unique(np.stack([faces.ravel(), label[: 3 * n]], axis=1), axis=0)
    return np.flatnonzero(np.bincount(fans[:, 0], minlength=n_vertices) > 1)
