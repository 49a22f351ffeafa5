"""Fewer triangles for a closed mesh that stays closed, two-manifold and without folds.

Edge collapse by quadric error (Garland and Heckbert, "Surface simplification using quadric error metrics", 1997). The
libraries that were measured break the lumpy meshes of radiance fields: `fast-simplification` and `pyfqmr` do not check
the topology, `manifold3d` bounds the error and not the number of triangles, libigl folds triangles over. `pymeshlab`
checks nearly as much as this module; it takes 100 MB and is under the GPL.
"""

import numpy as np

from .decimate_cpu import collapse
from .surface import used_only


FLIP = 0.2  # least cosine between the normals of a triangle before and after a collapse
FOLD = -0.8  # least cosine between the normals of neighboring triangles after a collapse
NEEDLE = 0.02  # least ratio of a triangle's doubled area and its squared longest edge after a collapse


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
            alive = collapse(vertices, faces, max_faces, flip, fold, needle)
            vertices, faces = used_only(vertices, faces[alive])
            faces = np.ascontiguousarray(faces, np.int64)
    return vertices, faces
