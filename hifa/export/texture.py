"""Texture baking: one color of the field for each texel in the UV charts of a mesh."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .grid import Color, in_chunks
from .mesh import Mesh
from .texture_cpu import rasterize
from .unwrap import unwrap
from .views import seen_color


DETAIL = 1 / 40  # longest edge that resolves the composited colors, as a fraction of the object's size


@dataclass(frozen=True)
class TexturedMesh:
    """Mesh with UV charts and a texture.

    Args:
        mesh: Closed mesh in world axes with V vertices and F faces.
        source: `(W,)` int, W >= V: index of the vertex of `mesh` for each chart vertex. A vertex on a cut has a chart
            vertex in each adjacent chart.
        faces: `(F, 3)` int32, the faces of `mesh` as indices of chart vertices.
        uv: `(W, 2)` float32 in [0, 1], u to the right, v up from the bottom of the texture.
        texture: `(size, size, 3)` uint8 sRGB, first row at the top, with the same display values as renders of the
            field.
    """

    mesh: Mesh
    source: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


def bake_texture(mesh: Mesh, color: Color, size: int = 1024) -> TexturedMesh:
    """Unwrap a mesh and bake the colors of the field into a texture.

    A texel gets the color at its point of `mesh.seen`, viewed against the normal. Two corrections are computed at the
    vertices and interpolated, so that the field is evaluated only once per texel. The first correction gives the
    mean color over view directions. The second correction gives the color composited along rays, as in renders
    (`mesh.colors`). Texels outside all charts repeat the nearest chart, so that filters and mipmaps do not mix in
    other colors at seams.

    Args:
        mesh: Mesh from `extract_mesh` of the same field.
        color: As for `extract_mesh`.
        size: Height and width of the texture in texels.
    """
    source, faces, uv = unwrap(mesh.vertices, mesh.faces, mesh.normals, size)
    corners = np.stack([uv[:, 0] * size, (1 - uv[:, 1]) * size], axis=1)  # texels, x right, y down
    owner, weights = rasterize(corners.astype(np.float64), faces, size)
    rows, columns = np.nonzero(owner >= 0)
    corner, weight = source[faces[owner[rows, columns]]], weights[rows, columns][..., None]  # (n, 3), (n, 3, 1)

    def on_texels(values: np.ndarray) -> np.ndarray:  # (V, 3) -> (n, 3)
        return (values[corner] * weight).sum(1)

    normals = on_texels(mesh.normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    texture = np.zeros((size, size, 3), np.float32)
    texture[rows, columns] = in_chunks(color, on_texels(mesh.seen), -normals)
    mean = seen_color(color, mesh.seen, mesh.normals)
    difference = mean - in_chunks(color, mesh.seen, -mesh.normals)
    texture[rows, columns] += on_texels(difference + _detail(mesh) * (mesh.colors - mean))
    nearest = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    texture = texture[tuple(nearest)]  # pyright: ignore[reportArgumentType]
    return TexturedMesh(mesh, source, faces, uv, np.round(texture.clip(0, 1) * 255).astype(np.uint8))


def _detail(mesh: Mesh) -> np.ndarray:
    """Return the weight `(V, 1)` of the composited vertex colors. The weight falls with the edge length.

    Composited colors vary from vertex to vertex and must not be interpolated over the large triangles of a flat
    surface.
    """
    ends = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    lengths = np.linalg.norm(mesh.vertices[ends[:, 0]] - mesh.vertices[ends[:, 1]], axis=1)
    count = np.bincount(ends[:, 0], minlength=len(mesh.vertices))
    mean_length = np.bincount(ends[:, 0], lengths, minlength=len(mesh.vertices)) / np.maximum(count, 1)
    short = DETAIL * np.ptp(mesh.vertices, axis=0).max()
    return np.minimum(1, short / np.maximum(mean_length, 1e-12))[:, None] ** 2
