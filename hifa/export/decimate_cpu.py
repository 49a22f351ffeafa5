"""Edge collapse in compiled loops for a CPU.

This module imports no other module of the package; see `compile_ahead`.
"""

import heapq
import math

import numba
import numpy as np


STAY = 1e-3  # weight of the squared distance to the old vertices, which fixes the new vertex on flat surfaces


@numba.njit(cache=True, nogil=True)
def collapse(vertices, faces, max_faces, flip, fold, needle):
    """Collapse edges in place, the cheapest edge first. Return the mask of the remaining faces."""
    n, m = vertices.shape[0], faces.shape[0]
    alive = np.ones(m, np.bool_)
    # The corners of each vertex form a linked list, so that two lists can be joined in constant time.
    head, tail, following = np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.full(3 * m, -1, np.int64)
    quadrics, version = np.zeros((n, 10)), np.zeros(n, np.int64)
    for f in range(m):
        first = _point(vertices, faces[f, 0])
        normal = _normal(first, _point(vertices, faces[f, 1]), _point(vertices, faces[f, 2]))
        size = math.sqrt(_dot(normal, normal))
        scale = 1 / max(size, 1e-300)
        x, y, z = normal[0] * scale, normal[1] * scale, normal[2] * scale
        offset = -(x * first[0] + y * first[1] + z * first[2])
        for k in range(3):
            v = faces[f, k]
            _add_plane(quadrics[v], x, y, z, offset, size)
            _add_plane(quadrics[v], 1.0, 0.0, 0.0, -vertices[v, 0], STAY * size)
            _add_plane(quadrics[v], 0.0, 1.0, 0.0, -vertices[v, 1], STAY * size)
            _add_plane(quadrics[v], 0.0, 0.0, 1.0, -vertices[v, 2], STAY * size)
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
                _, cost = _best_place(quadrics, vertices, a, b)
                heap.append((cost, a, b, 0, 0))
    heapq.heapify(heap)
    ring_a, ring_b, fan = np.empty(512, np.int64), np.empty(512, np.int64), np.empty(512, np.int64)
    normals = np.empty((512, 3))
    left = m
    while left > max_faces and len(heap) > 0:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        if version[a] != version_a or version[b] != version_b:
            continue
        place, _ = _best_place(quadrics, vertices, a, b)
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
        for k in range(3):
            vertices[a, k] = place[k]
        for k in range(10):
            quadrics[a, k] += quadrics[b, k]
        version[a] += 1
        version[b] = -1
        count_a = _ring(a, faces, alive, head, following, ring_a)
        for i in range(count_a):
            w = ring_a[i]
            _, cost = _best_place(quadrics, vertices, a, w)
            heapq.heappush(heap, (cost, a, w, version[a], version[w]))  # pyright: ignore[reportArgumentType]
    return alive


# Points are tuples of three numbers, because numba takes several times as long to compile arrays.


@numba.njit
def _point(vertices, v):
    return vertices[v, 0], vertices[v, 1], vertices[v, 2]


@numba.njit
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit
def _squared_distance(a, b):
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return x * x + y * y + z * z


@numba.njit
def _normal(a, b, c):
    """Return the normal of a triangle. Its length is twice the area of the triangle."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@numba.njit
def _add_plane(quadric, x, y, z, offset, weight):
    """Add the squared distance from a plane to a quadric.

    A quadric is a symmetric 4 x 4 matrix, stored as the rows of its upper triangle.
    """
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
def _best_place(quadrics, vertices, v, w):
    """Return the point of least error for an edge, and its error.

    If the point of least error is far from the edge, use the middle of the edge.
    """
    xx, xy, xz = quadrics[v, 0] + quadrics[w, 0], quadrics[v, 1] + quadrics[w, 1], quadrics[v, 2] + quadrics[w, 2]
    x1, yy, yz = quadrics[v, 3] + quadrics[w, 3], quadrics[v, 4] + quadrics[w, 4], quadrics[v, 5] + quadrics[w, 5]
    y1, zz, z1 = quadrics[v, 6] + quadrics[w, 6], quadrics[v, 7] + quadrics[w, 7], quadrics[v, 8] + quadrics[w, 8]
    constant = quadrics[v, 9] + quadrics[w, 9]
    a, b = _point(vertices, v), _point(vertices, w)
    middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
    place = middle
    # Cramer's rule. `STAY` makes the matrix positive definite.
    c0, c1, c2 = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - yy * xz
    determinant = xx * c0 + xy * c1 + xz * c2
    if determinant > 1e-30 * (xx + yy + zz) ** 3:
        c3, c4, c5 = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
        best = (
            -(c0 * x1 + c1 * y1 + c2 * z1) / determinant,
            -(c1 * x1 + c3 * y1 + c4 * z1) / determinant,
            -(c2 * x1 + c4 * y1 + c5 * z1) / determinant,
        )
        if _squared_distance(best, middle) <= 4 * _squared_distance(a, b):
            place = best
    x, y, z = place
    error = xx * x * x + 2 * xy * x * y + 2 * xz * x * z + 2 * x1 * x + yy * y * y + 2 * yz * y * z
    return place, error + 2 * y1 * y + zz * z * z + 2 * z1 * z + constant


@numba.njit
def _ring(v, faces, alive, head, following, out):
    """Write the neighbors of a vertex to `out`. Return their number, or -1 if `out` is too small."""
    count, corner = 0, head[v]
    while corner >= 0:
        f, k = corner // 3, corner % 3
        if alive[f]:
            if count == out.size:
                return -1
            out[count] = faces[f, (k + 1) % 3]  # in a closed two-manifold mesh, each neighbor occurs once
            count += 1
        corner = following[corner]
    return count


@numba.njit
def _keeps_topology(ring_a, ring_b, faces, alive, head, following):
    """Check the link condition: the ends of the edge share two neighbors, each with more than three triangles."""
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
    """Write the corners at `a` and `b` of the triangles that a collapse keeps to `out`.

    Return their number, or -1 if `out` is too small.
    """
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
    """Return whether no triangle of the fan flips, folds onto a neighbor or becomes a needle."""
    for i in range(fan.size):
        f, k = fan[i] // 3, fan[i] % 3
        v, w = _point(vertices, faces[f, (k + 1) % 3]), _point(vertices, faces[f, (k + 2) % 3])
        after, before = _normal(place, v, w), _normal(_point(vertices, faces[f, k]), v, w)
        size = math.sqrt(_dot(after, after))
        longest = max(_squared_distance(v, w), _squared_distance(place, v), _squared_distance(place, w))
        if size <= needle * longest or _dot(before, after) < flip * size * math.sqrt(_dot(before, before)):
            return False
        for axis in range(3):
            normals[i, axis] = after[axis] / size
    for i in range(fan.size):
        f, k = fan[i] // 3, fan[i] % 3
        normal, v, w = _point(normals, i), faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
        for j in range(fan.size):
            if faces[fan[j] // 3, (fan[j] % 3 + 1) % 3] == w and _dot(normal, _point(normals, j)) < fold:
                return False
        corner = head[w]  # the triangle on the other side of the edge from v to w
        while corner >= 0:
            g, c = corner // 3, corner % 3
            if alive[g] and faces[g, (c + 1) % 3] == v and faces[g, (c + 2) % 3] != a and faces[g, (c + 2) % 3] != b:
                apex = _point(vertices, faces[g, (c + 2) % 3])
                outer = _normal(_point(vertices, w), _point(vertices, v), apex)
                if _dot(normal, outer) < fold * math.sqrt(_dot(outer, outer)):
                    return False
            corner = following[corner]
    return True


def compile_loops() -> None:
    """Compile the loops for the argument types that the package uses; see `compile_ahead`."""
    corners = np.array([(1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)])
    collapse(corners, np.array([(0, 1, 2), (0, 3, 1), (0, 2, 3), (1, 3, 2)]), 4, 0.2, -0.8, 0.02)
