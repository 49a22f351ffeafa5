"""Test the unwrapping of meshes into charts of a texture."""

import threading
import time

import numpy as np
import pytest
import trimesh

from hifa.export.unwrap import unwrap


def test_charts_cover_every_face_once_and_do_not_overlap():
    cube = trimesh.creation.box()
    source, faces, uv = unwrap(cube.vertices, cube.faces, cube.vertex_normals, 256)
    np.testing.assert_array_equal(np.sort(source[faces], 1), np.sort(cube.faces, 1))
    assert len(source) > len(cube.vertices), "a cube has to be cut"
    a, b, c = (uv[faces[:, k]].astype(float) for k in range(3))
    areas = abs((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])) / 2
    assert areas == pytest.approx(areas.mean(), rel=1e-3) and 0.3 < areas.sum() <= 1
    assert uv.min() >= 0 and uv.max() <= 1


def test_what_cannot_be_unwrapped_is_told():
    with pytest.raises(RuntimeError, match="The mesh could not be unwrapped: .*[Ii]ndex"):
        unwrap(np.zeros((3, 3), np.float32), np.array([[0, 1, 7]]), np.zeros((3, 3), np.float32), 64)


def test_others_go_on_while_a_mesh_is_unwrapped():
    """Xatlas holds the interpreter for as long as it works, about a second for this one."""
    ball = trimesh.creation.icosphere(5)
    gaps, over = [], threading.Event()

    def tick():
        last = time.perf_counter()
        while not over.wait(0.01):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    watch = threading.Thread(target=tick)
    watch.start()
    clock = time.perf_counter()
    unwrap(ball.vertices, ball.faces, ball.vertex_normals, 512)
    took = time.perf_counter() - clock
    over.set()
    watch.join()
    assert max(gaps) < took / 3, (max(gaps), took)
