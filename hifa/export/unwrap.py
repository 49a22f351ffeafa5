"""A mesh cut open into flat charts by xatlas, in a process of its own.

xatlas keeps the interpreter to itself for as long as it works, 0.4 s for 10 000 triangles and several for many or
ragged ones: in a server's own process all its other visitors would stand still. This file is also the program that the
process runs; it imports nothing of the package, so that it starts in a fifth of a second.
"""

import io
import subprocess
import sys

import numpy as np


MAX_COST = 0.5
MIN_CHARTS = 80  # about; the time of 20 000 triangles falls from 2 to 4 s to 0.8 s
PADDING = 2  # texels between charts
PATIENCE = 600  # seconds


def unwrap(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """UV charts of a mesh.

    Args:
        vertices, normals: `(V, 3)`.
        faces: `(F, 3)` of vertices.
        size: Texels per side of the texture that the charts are packed for.

    Returns:
        Which vertex of the mesh each vertex of the charts is `(W,)` int64, the faces `(F, 3)` int32 as vertices of the
        charts, and their place `(W, 2)` float32 in [0, 1].

    Raises:
        RuntimeError: If xatlas fails, or does not end: on a surface that is crumpled everywhere it may take hours.
    """
    given = io.BytesIO()
    np.savez(given, vertices=vertices, faces=faces.astype(np.uint32), normals=normals, size=size)
    # -P: beside this file are modules with names that others have too.
    command = [sys.executable, "-P", __file__]
    try:
        ended = subprocess.run(command, input=given.getvalue(), capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"The mesh could not be unwrapped in {PATIENCE} s. Ask for fewer faces, or a PLY, which has no texture."
        ) from error
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"The mesh could not be unwrapped: {said[-1] if said else ended.returncode}")
    with np.load(io.BytesIO(ended.stdout)) as made:
        source, charted, uv = (made[name] for name in ("source", "faces", "uv"))
    return source.astype(np.int64), charted.astype(np.int32), uv.astype(np.float32)


def main() -> None:
    """Unwrap the mesh that comes in, and write out the charts."""
    import xatlas

    with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
        vertices, faces, normals, size = (given[name] for name in ("vertices", "faces", "normals", "size"))
    charting, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    # A quarter of the default cost stops a chart from growing sooner: the time, which goes into flattening the large
    # ones, falls by half and the texture is used no worse.
    charting.max_cost = MAX_COST
    packing.resolution, packing.padding = int(size), PADDING
    # The time to flatten a chart grows faster than its area, and a smooth surface would have few and large ones.
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    charting.max_chart_area = float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 / MIN_CHARTS)
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces, normals)
    atlas.generate(charting, packing)
    source, charted, uv = atlas.get_mesh(0)
    made = io.BytesIO()
    np.savez(made, source=source, faces=charted, uv=uv)
    sys.stdout.buffer.write(made.getvalue())


if __name__ == "__main__":
    main()
