"""Fewer triangles for a closed mesh that stays closed, two-manifold and without folds.

Edge collapse by quadric error (Garland and Heckbert, "Surface simplification using quadric error metrics", 1997). The
libraries that were measured break the lumpy meshes of radiance fields: `fast-simplification` and `pyfqmr` do not check
the topology, `manifold3d` bounds the error and not the number of triangles, libigl folds triangles over. `pymeshlab`
checks nearly as much as this module; it takes 100 MB and is under the GPL.
"""

import heapq

import numba
import numpy as np

from .surface import used_only


FLIP = 0.2  # least cosine between the normals of a triangle before and after a collapse
FOLD = -0.8  # least cosine between the normals of neighboring triangles after a collapse
NEEDLE = 0.02  # least ratio of a triangle's doubled area and its squared longest edge after a collapse
STAY = 1e-3  # weight of the distance from the old vertices: where a surface is flat, this alone places the new one


def decimated(vertices: np.ndarray, faces: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Simplify a closed mesh to at most `max_faces` triangles.

    A collapse is refused if it would change the topology, turn a triangle over, fold two neighbors onto each other or
    leave a needle. Where refusals keep the number above `max_faces`, only those of topology and folds remain.

    Args:
        vertices: `(V, 3)`.
        faces: `(F, 3)`, closed and two-manifold.

    Returns:
        Vertices float64 and faces. There are more than `max_faces` only if every other collapse changes the topology.
    """
    vertices, faces = np.array(vertices, np.float64), np.array(faces, np.int64)
    for flip, fold, needle in ((FLIP, FOLD, NEEDLE), (0.0, -0.95, 1e-3), (-0.5, -0.98, 1e-5)):
        before = -1
        while len(faces) > max_faces and len(faces) != before:
            before = len(faces)
            alive = _collapse(vertices, faces, max_faces, flip, fold, needle)
            vertices, faces = used_only(vertices, faces[alive])
            faces = np.ascontiguousarray(faces, np.int64)
    return vertices, faces


@numba.njit(cache=True, nogil=True)
def _collapse(vertices, faces, max_faces, flip, fold, needle):
    """Collapse edges in place, the cheapest first; returns which faces are left."""
    n, m = vertices.shape[0], faces.shape[0]
    alive = np.ones(m, np.bool_)
    # The corners of each vertex as a linked list: two lists are joined in constant time.
    head, tail, following = np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.full(3 * m, -1, np.int64)
    quadrics, version = np.zeros((n, 10)), np.zeros(n, np.int64)
    for f in range(m):
        normal = _normal(vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]])
        size = np.sqrt((normal**2).sum())
        unit = normal / max(size, 1e-300)
        offset = -(unit * vertices[faces[f, 0]]).sum()
        for k in range(3):
            v = faces[f, k]
            _add_plane(quadrics[v], unit, offset, size)
            for axis in range(3):
                _add_plane(quadrics[v], np.eye(3)[axis], -vertices[v, axis], STAY * size)
            corner = 3 * f + k
            if head[v] < 0:
                head[v] = corner
            else:
                following[tail[v]] = corner
            tail[v] = corner
    heap = [(0.0, 0, 0, 0, 0) for _ in range(0)]
    for f in range(m):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            if a < b:
                heap.append((_best_place(quadrics[a] + quadrics[b], vertices[a], vertices[b])[1], a, b, 0, 0))
    heapq.heapify(heap)
    ring_a, ring_b, fan = np.empty(512, np.int64), np.empty(512, np.int64), np.empty(512, np.int64)
    normals = np.empty((512, 3))
    left = m
    while left > max_faces and len(heap) > 0:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        if version[a] != version_a or version[b] != version_b:
            continue
        place, _ = _best_place(quadrics[a] + quadrics[b], vertices[a], vertices[b])
        count_a = _ring(a, faces, alive, head, following, ring_a)
        count_b = _ring(b, faces, alive, head, following, ring_b)
        if (
            count_a < 0
            or count_b < 0
            or not _keeps_topology(ring_a[:count_a], ring_b[:count_b], faces, alive, head, following)
        ):
            continue
        count = _fan(a, b, faces, alive, head, following, fan)
        if count < 0 or not _keeps_shape(
            a, b, place, fan[:count], normals, vertices, faces, alive, head, following, flip, fold, needle
        ):
            continue
        corner = head[b]
        while corner >= 0:
            f, k = corner // 3, corner % 3
            if alive[f]:
                if faces[f, 0] == a or faces[f, 1] == a or faces[f, 2] == a:
                    alive[f] = False
                    left -= 1
                else:
                    faces[f, k] = a
            corner = following[corner]
        following[tail[a]] = head[b]
        tail[a] = tail[b]
        vertices[a] = place
        quadrics[a] += quadrics[b]
        version[a] += 1
        version[b] = -1
        count_a = _ring(a, faces, alive, head, following, ring_a)
        for i in range(count_a):
            w = ring_a[i]
            cost = _best_place(quadrics[a] + quadrics[w], vertices[a], vertices[w])[1]
            heapq.heappush(heap, (cost, a, w, version[a], version[w]))
    return alive


@numba.njit(inline="always")
def _normal(a, b, c):
    """Normal of a triangle, as long as its doubled area."""
    return np.array(
        (
            (b[1] - a[1]) * (c[2] - a[2]) - (b[2] - a[2]) * (c[1] - a[1]),
            (b[2] - a[2]) * (c[0] - a[0]) - (b[0] - a[0]) * (c[2] - a[2]),
            (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]),
        )
    )


@numba.njit
def _add_plane(quadric, unit, offset, weight):
    """Add the squared distance from a plane: the upper triangle of a symmetric 4 x 4 matrix, row by row."""
    x, y, z = unit
    quadric[0] += weight * x * x
    quadric[1] += weight * x * y
    quadric[2] += weight * x * z
    quadric[3] += weight * x * offset
    quadric[4] += weight * y * y
    quadric[5] += weight * y * z
    quadric[6] += weight * y * offset
    quadric[7] += weight * z * z
    quadric[8] += weight * z * offset
    quadric[9] += weight * offset * offset


@numba.njit
def _best_place(q, a, b):
    """Point of least error and its error; the middle of the edge where the point is far from the edge."""
    middle = (a + b) / 2
    place = middle
    # Cramer's rule; the matrix is positive definite because of `STAY`.
    c0, c1, c2 = q[4] * q[7] - q[5] * q[5], q[2] * q[5] - q[1] * q[7], q[1] * q[5] - q[2] * q[4]
    determinant = q[0] * c0 + q[1] * c1 + q[2] * c2
    if determinant > 1e-30 * (q[0] + q[4] + q[7]) ** 3:
        c3, c4, c5 = q[0] * q[7] - q[2] * q[2], q[1] * q[2] - q[0] * q[5], q[0] * q[4] - q[1] * q[1]
        best = (
            -np.array(
                (
                    c0 * q[3] + c1 * q[6] + c2 * q[8],
                    c1 * q[3] + c3 * q[6] + c4 * q[8],
                    c2 * q[3] + c4 * q[6] + c5 * q[8],
                )
            )
            / determinant
        )
        if ((best - middle) ** 2).sum() <= 4 * ((a - b) ** 2).sum():
            place = best
    x, y, z = place
    error = q[0] * x * x + 2 * q[1] * x * y + 2 * q[2] * x * z + 2 * q[3] * x + q[4] * y * y + 2 * q[5] * y * z
    return place, error + 2 * q[6] * y + q[7] * z * z + 2 * q[8] * z + q[9]


@numba.njit
def _ring(v, faces, alive, head, following, out):
    """Write the neighbors of a vertex; returns their number, -1 if there are too many."""
    count, corner = 0, head[v]
    while corner >= 0:
        f, k = corner // 3, corner % 3
        if alive[f]:
            if count == out.size:
                return -1
            out[count] = faces[f, (k + 1) % 3]  # closed and two-manifold: each neighbor follows once
            count += 1
        corner = following[corner]
    return count


@numba.njit
def _keeps_topology(ring_a, ring_b, faces, alive, head, following):
    """Link condition: the ends of the edge share two neighbors, and each of those has more than three."""
    shared = 0
    for v in ring_a:
        for w in ring_b:
            if v == w:
                shared += 1
                count, corner = 0, head[v]
                while corner >= 0:
                    count += alive[corner // 3]
                    corner = following[corner]
                if count <= 3:
                    return False
    return shared == 2


@numba.njit
def _fan(a, b, faces, alive, head, following, out):
    """Write the corners at `a` and at `b` of the triangles that a collapse leaves; -1 if there are too many."""
    count = 0
    for v, other in ((a, b), (b, a)):
        corner = head[v]
        while corner >= 0:
            f = corner // 3
            if alive[f] and faces[f, 0] != other and faces[f, 1] != other and faces[f, 2] != other:
                if count == out.size:
                    return -1
                out[count] = corner
                count += 1
            corner = following[corner]
    return count


@numba.njit
def _keeps_shape(a, b, place, fan, normals, vertices, faces, alive, head, following, flip, fold, needle):
    """Whether no triangle of the fan turns over, folds onto a neighbor or becomes a needle."""
    for i in range(fan.size):
        f, k = fan[i] // 3, fan[i] % 3
        v, w = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
        after = _normal(place, vertices[v], vertices[w])
        before = _normal(vertices[faces[f, k]], vertices[v], vertices[w])
        size = np.sqrt((after**2).sum())
        longest = ((vertices[v] - vertices[w]) ** 2).sum()
        longest = max(longest, ((place - vertices[v]) ** 2).sum(), ((place - vertices[w]) ** 2).sum())
        if size <= needle * longest or (before * after).sum() < flip * size * np.sqrt((before**2).sum()):
            return False
        normals[i] = after / size
    for i in range(fan.size):
        f, k = fan[i] // 3, fan[i] % 3
        v, w = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
        for j in range(fan.size):
            if faces[fan[j] // 3, (fan[j] % 3 + 1) % 3] == w and (normals[i] * normals[j]).sum() < fold:
                return False
        corner = head[w]  # the triangle on the other side of the edge from v to w
        while corner >= 0:
            g, c = corner // 3, corner % 3
            if alive[g] and faces[g, (c + 1) % 3] == v and faces[g, (c + 2) % 3] != a and faces[g, (c + 2) % 3] != b:
                outer = _normal(vertices[w], vertices[v], vertices[faces[g, (c + 2) % 3]])
                if (normals[i] * outer).sum() < fold * np.sqrt((outer**2).sum()):
                    return False
            corner = following[corner]
    return True
