"""Small rasterizer for exported meshes. It shares no code with the exporter, so it can check exported files."""

from typing import Any, cast

import numba
import numpy as np
import trimesh


def render_mesh(path, pose: np.ndarray, size: int = 128, fov_deg: float = 40.0) -> tuple[np.ndarray, np.ndarray]:
    """Render a textured mesh file (GLB or OBJ) on black. There is no lighting, and each pixel has the nearest texel.

    Args:
        path: Mesh file. The up axis is +Y, and the front faces +Z.
        pose: `(3, 4)` camera-to-world matrix with OpenCV camera axes. In the world, z is up and the front faces +x.
        size: Height and width in pixels.
        fov_deg: Horizontal and vertical field of view in degrees.

    Returns:
        Color `(size, size, 3)` in [0, 1] and mask `(size, size)` bool. Back faces are not drawn.
    """
    mesh = trimesh.load_mesh(path, process=False)
    vertices = np.asarray(mesh.vertices)[:, [2, 0, 1]]  # glTF (y, z, x) -> world (x, y, z)
    camera = (vertices - pose[:, 3]) @ pose[:, :3]
    focal = 0.5 * size / np.tan(np.radians(fov_deg) / 2)
    pixels = np.stack([*(camera[:, :2] / camera[:, 2:] * focal + size / 2).T, camera[:, 2]], axis=1)
    visual = cast(Any, mesh.visual)  # trimesh declares no texture
    material = visual.material
    image = material.baseColorTexture if hasattr(material, "baseColorTexture") else material.image
    texture = np.asarray(image.convert("RGB"), np.float32) / 255
    uv = _rasterize(pixels, np.asarray(mesh.faces), np.asarray(visual.uv), size)
    mask = uv[..., 2] > 0
    row = ((1 - uv[..., 1]) * texture.shape[0]).astype(int).clip(0, texture.shape[0] - 1)
    column = (uv[..., 0] * texture.shape[1]).astype(int).clip(0, texture.shape[1] - 1)
    return texture[row, column] * mask[..., None], mask


@numba.njit(cache=True)
def _rasterize(pixels, faces, uv, size):
    """Return `(size, size, 3)`: u, v and 1 for the nearest front-facing triangle, or zeros without a triangle."""
    nearest = np.full((size, size), np.inf)
    out = np.zeros((size, size, 3))
    for i, j, k in faces:
        ax, ay, az = pixels[i]
        bx, by, bz = pixels[j]
        cx, cy, cz = pixels[k]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:  # y points down, so counterclockwise is negative
            continue
        left, right = max(int(min(ax, bx, cx)), 0), min(int(max(ax, bx, cx)), size - 1)
        top, bottom = max(int(min(ay, by, cy)), 0), min(int(max(ay, by, cy)), size - 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                # Interpolate attributes divided by depth, because only these are linear on the screen.
                depth = 1 / (wa / az + wb / bz + wc / cz)
                if depth < nearest[row, column]:
                    nearest[row, column] = depth
                    out[row, column, :2] = depth * (wa / az * uv[i] + wb / bz * uv[j] + wc / cz * uv[k])
                    out[row, column, 2] = 1
    return out
