"""Fields with a known surface, and checks of the meshes made of them."""

import numba
import numpy as np
import torch
import trimesh

from hifa.toybox import shapes


@numba.njit(cache=True)
def nearest_part(kind, operation, size, center, rotation, points):
    out = np.empty(len(points), np.int64)
    for i in range(len(points)):
        _, out[i] = shapes.distance(kind, operation, size, center, rotation, points[i, 0], points[i, 1], points[i, 2])
    return out


def field_of(shape: shapes.Shape, softness: float = 0.004):
    """Return the density, 60 inside and falling to 0 over a few `softness`, and the color of the nearest part."""

    def density(points):
        return 60 * torch.sigmoid(-torch.from_numpy(shapes.signed_distance(shape, points.numpy())) / softness)

    def color(points, directions):
        return torch.from_numpy(shape.color[nearest_part(*shape.arrays()[:5], points.numpy())])

    return density, color


def ball(radius: float, softness: float = 0.01, peak: float = 60.0, center=(0.0, 0.0, 0.0)):
    return lambda p: peak * torch.sigmoid((radius - (p - torch.tensor(center)).norm(dim=1)) / softness)


def gray(points, directions):
    return torch.full_like(points, 0.5)


def closed(mesh) -> trimesh.Trimesh:
    """Return the mesh for trimesh, after checking that it is closed and consistently wound."""
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.is_watertight and solid.is_winding_consistent
    return solid
