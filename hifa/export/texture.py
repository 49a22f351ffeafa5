"""A picture wrapped around a mesh: one colour of the field per texel of its UV charts."""

from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage

from .grid import Colour, in_chunks
from .mesh import Mesh
from .unwrap import unwrap
from .views import seen_colour


DETAIL = 1 / 40  # of the object's size: edges up to this length resolve how colors mix


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh, how it is cut open into flat charts, and the picture that lies on them.

    Args:
        mesh: The closed mesh, in world axes, with V vertices and F faces.
        source: `(W,)` int, W >= V: the vertex of `mesh` that each vertex of the charts is. Those on a cut occur once
            for each chart they border.
        faces: `(F, 3)` int32, the faces of `mesh` as vertices of the charts.
        uv: `(W, 2)` float32 in [0, 1], u to the right, v up from the bottom of the picture.
        texture: `(size, size, 3)` uint8 sRGB, first row at the top: the display values of the field's pictures.
    """

    mesh: Mesh
    source: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


def bake_texture(mesh: Mesh, colour: Colour, size: int = 1024) -> TexturedMesh:
    """Unwrap a mesh and colour its texture from the field.

    A texel takes the colour at its point of `mesh.seen`, seen from straight above. How much that differs from the mean
    over directions, and from the mixture along rays that pictures show (`mesh.colours`), is computed at the vertices
    and interpolated: the field is evaluated once per texel. Texels outside all charts repeat the nearest chart, so
    that no filter or mipmap brings in another colour at a seam.

    Args:
        mesh: From `extract_mesh`, of the same field.
        colour: As for `extract_mesh`.
        size: Height and width of the texture in texels.
    """
    source, faces, uv = unwrap(mesh.vertices, mesh.faces, mesh.normals, size)
    corners = np.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size], axis=1)  # texels, x right, y down
    owner, weights = _rasterise(corners.astype(np.float64), faces, size)
    rows, columns = np.nonzero(owner >= 0)
    corner, weight = source[faces[owner[rows, columns]]], weights[rows, columns][..., None]  # (n, 3), (n, 3, 1)

    def on_texels(values: np.ndarray) -> np.ndarray:  # (V, 3) -> (n, 3)
        return (values[corner] * weight).sum(1)

    normals = on_texels(mesh.normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    texture = np.zeros((size, size, 3), np.float32)
    texture[rows, columns] = in_chunks(colour, on_texels(mesh.seen), -normals)
    mean = seen_colour(colour, mesh.seen, mesh.normals)
    difference = mean - in_chunks(colour, mesh.seen, -mesh.normals)
    texture[rows, columns] += on_texels(difference + _detail(mesh) * (mesh.colours - mean))
    nearest = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    texture = texture[tuple(nearest)]
    return TexturedMesh(mesh, source, faces, uv, np.round(texture.clip(0, 1) * 255).astype(np.uint8))


def _detail(mesh: Mesh) -> np.ndarray:
    """Weight `(V, 1)` of what vertices know about the mixture of colors along rays.

    The mixture changes from place to place, so it must not spread over the large triangles of a flat surface.
    """
    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    lengths = np.linalg.norm(mesh.vertices[ends[:, 0]] - mesh.vertices[ends[:, 1]], axis=1)
    count = np.bincount(ends[:, 0], minlength=len(mesh.vertices))
    mean_length = np.bincount(ends[:, 0], lengths, minlength=len(mesh.vertices)) / np.maximum(count, 1)
    short = DETAIL * np.ptp(mesh.vertices, axis=0).max()
    return np.minimum(1, short / np.maximum(mean_length, 1e-12))[:, None] ** 2


@numba.njit(cache=True)
def _rasterise(corners, faces, size):
    """The triangle of each texel centre `(size, size)`, -1 for none, and its barycentric weights there.

    A texel whose centre lies in no triangle but within half a texel of one belongs to it too, with weights clamped to
    the triangle: charts narrower than a texel get their colour this way.
    """
    owner = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 3), np.float32)
    inside = np.zeros((size, size), np.bool_)
    for face in range(faces.shape[0]):
        ax, ay = corners[faces[face, 0]]
        bx, by = corners[faces[face, 1]]
        cx, cy = corners[faces[face, 2]]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        left, right = max(int(min(ax, bx, cx) - 1.0), 0), min(int(max(ax, bx, cx) + 1.0), size - 1)
        top, bottom = max(int(min(ay, by, cy) - 1.0), 0), min(int(max(ay, by, cy) + 1.0), size - 1)
        # A weight falls by 1 over the triangle's height above that edge; `reach` of it is half a texel.
        reach_a = 0.5 * np.hypot(cx - bx, cy - by) / abs(area)
        reach_b = 0.5 * np.hypot(ax - cx, ay - cy) / abs(area)
        reach_c = 0.5 * np.hypot(bx - ax, by - ay) / abs(area)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                within = wa >= 0.0 and wb >= 0.0 and wc >= 0.0
                if inside[row, column] or not (within or (wa > -reach_a and wb > -reach_b and wc > -reach_c)):
                    continue
                wa, wb, wc = max(wa, 0.0), max(wb, 0.0), max(wc, 0.0)
                total = wa + wb + wc
                owner[row, column], inside[row, column] = face, within
                weights[row, column] = np.array((wa / total, wb / total, wc / total))
    return owner, weights
