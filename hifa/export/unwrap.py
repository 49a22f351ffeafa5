"""UV unwrapping of a mesh by xatlas in a subprocess.

xatlas holds the global interpreter lock while it works. This takes 0.4 s for 10,000 triangles, and several seconds for
larger or ragged meshes. In the main process of a server, all other requests would have to wait. This file is also the
program that the subprocess runs. The program imports no other module of the package, so that the subprocess starts in
0.2 s.
"""

import io
import subprocess
import sys

import numpy as np


MAX_COST = 0.5
MIN_CHARTS = 80  # approximate; reduces the time for 20,000 triangles from 2-4 s to 0.8 s
PADDING = 2  # texels between charts
PATIENCE = 600  # timeout, seconds


def unwrap(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unwrap a mesh into UV charts.

    Args:
        vertices: `(V, 3)`.
        faces: `(F, 3)` vertex indices.
        normals: `(V, 3)`.
        size: Height and width, in texels, of the texture for which the charts are packed.

    Returns:
        The index of the mesh vertex for each chart vertex `(W,)` int64, the faces as indices of chart vertices
        `(F, 3)` int32, and the UV coordinates of the chart vertices `(W, 2)` float32 in [0, 1].

    Raises:
        RuntimeError: If xatlas fails or exceeds `PATIENCE`. On a surface that is crumpled everywhere, xatlas may take
            hours.
    """
    given = io.BytesIO()
    np.savez(given, vertices=vertices, faces=faces.astype(np.uint32), normals=normals, size=size)
    # -P keeps the folder of this file off the module search path, where its modules could shadow other modules.
    command = [sys.executable, "-P", __file__]
    try:
        ended = subprocess.run(command, input=given.getvalue(), capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"The mesh could not be unwrapped in {PATIENCE} s. Use fewer faces, or a PLY, which has no texture."
        ) from error
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"The mesh could not be unwrapped: {said[-1] if said else ended.returncode}")
    with np.load(io.BytesIO(ended.stdout)) as made:
        source, charted, uv = (made[name] for name in ("source", "faces", "uv"))
    return source.astype(np.int64), charted.astype(np.int32), uv.astype(np.float32)


def main() -> None:
    """Read a mesh from stdin, unwrap the mesh, and write the charts to stdout."""
    import xatlas

    with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
        vertices, faces, normals, size = (given[name] for name in ("vertices", "faces", "normals", "size"))
    charting, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    # With a quarter of the default cost, charts stop growing earlier. Flattening large charts takes most of the time,
    # so the time falls by half. The texture area is used equally well.
    charting.max_cost = MAX_COST
    packing.resolution, packing.padding = int(size), PADDING
    # The time to flatten a chart grows faster than its area, and a smooth surface would have few, large charts.
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
