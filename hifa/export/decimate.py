"""Mesh simplification that keeps a mesh closed, two-manifold and free of folds.

The method is edge collapse by quadric error (Garland and Heckbert, "Surface simplification using quadric error
metrics", 1997). No tested library suits the lumpy meshes of radiance fields. `fast-simplification` and `pyfqmr` do not
check the topology. `manifold3d` bounds the error and not the number of triangles. libigl folds triangles over.
`pymeshlab` checks nearly as much as this module, but takes 100 MB and is under the GPL.
"""

import numpy as np

from .decimate_cpu import collapse
from .surface import used_only


FLIP = 0.2  # smallest cosine between the normals of a triangle before and after a collapse
FOLD = -0.8  # smallest cosine between the normals of neighboring triangles after a collapse
NEEDLE = 0.02  # smallest ratio of twice a triangle's area to its squared longest edge after a collapse


def decimated(vertices: np.ndarray, faces: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Simplify a closed mesh to at most `max_faces` triangles.

    A collapse is rejected if it would change the topology, flip a triangle, fold two neighbors onto each other or
    create a needle. If rejections keep the number of triangles above `max_faces`, the limits on flips, folds and
    needles are relaxed in two stages. The topology never changes.

    Args:
        vertices: `(V, 3)`.
        faces: `(F, 3)` vertex indices of a closed two-manifold mesh.
        max_faces: Largest number of triangles.

    Returns:
        Vertices `(V', 3)` float64 and faces `(F', 3)`. F' exceeds `max_faces` only if every further collapse would
        change the topology or violate the most relaxed limits.
    """
    vertices, faces = np.array(vertices, np.float64), np.array(faces, np.int64)
    for flip, fold, needle in ((FLIP, FOLD, NEEDLE), (0.0, -0.95, 1e-3), (-0.5, -0.98, 1e-5)):
        before = -1
        while len(faces) > max_faces and len(faces) != before:
            before = len(faces)
            alive = collapse(vertices, faces, max_faces, flip, fold, needle)
            vertices, faces = used_only(vertices, faces[alive])
            faces = np.ascontiguousarray(faces, np.int64)
    return vertices, faces
