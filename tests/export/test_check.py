"""Test that meshes are well formed at every budget of triangles, and that faults are found."""

import numpy as np
import pytest
import torch
import trimesh

from hifa.export import export_mesh, extract_mesh
from hifa.export.decimate import decimated
from hifa.export.mesh import MeshWarning
from hifa.export.mesh_check import find_faults
from hifa.export.surface import vertex_normals
from tests.helpers.meshes import ball, closed, gray


def lumpy(points):
    """A ball under waves of a few cells, as unfinished fields have them, with a hole that goes in deep."""
    generator = torch.Generator().manual_seed(0)
    waves, phases = 25 * torch.randn(40, 3, generator=generator), 6.28 * torch.rand(40, generator=generator)
    height = 0.5 - points.norm(dim=1) + 0.02 * torch.sin(points @ waves.T + phases).sum(1)
    return 60 * torch.sigmoid(height / 0.01)


def touching(points):
    """Two balls that touch in one grid point."""
    return torch.maximum(ball(0.25, center=(-0.25, 0, 0))(points), ball(0.25, center=(0.25, 0, 0))(points))


def plate(points):
    """A plate of half a cell of the grid, opaque all the same."""
    flat = points[:, :2].abs().amax(1) < 0.5
    return 200 * flat * torch.exp(-0.5 * (points[:, 2] / 0.01) ** 2)


SPOT = torch.tensor((0.5, 0.0, 0.0))


def shell_with_a_soft_spot(points):
    """A hollow ball whose wall is so soft around `SPOT` that rays meet half of its opacity only in the hollow."""
    near, radius = (points - SPOT).norm(dim=1) < 0.15, points.norm(dim=1)
    wall = torch.sigmoid((radius - 0.44) / 0.005) * torch.sigmoid((0.5 - radius) / 0.005)
    return wall * torch.where(near, 2.0, 100.0)


FIELDS = {
    "ball": ball(0.5), "lumpy": lumpy, "touching": touching, "plate": plate, "shell": shell_with_a_soft_spot,
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_meshes_are_well_formed_at_every_budget(name):
    for max_faces in (None, 3000, 600):
        mesh = extract_mesh(FIELDS[name], gray, 1.0, resolution=64, max_faces=max_faces)
        assert not mesh.faults and not find_faults(mesh.vertices, mesh.faces, mesh.normals)
        assert max_faces is None or len(mesh.faces) <= max_faces
        closed(mesh)


def test_glbs_are_well_formed_when_they_are_read_back(tmp_path):
    """`.ci/run` shows one to Khronos' validator, too."""
    for name, field in FIELDS.items():
        path = export_mesh(tmp_path / f"{name}.glb", field, gray, 1.0, resolution=64, max_faces=2000, texture_size=64)
        mesh = trimesh.load(path, process=False, force="mesh")
        assert not find_faults(mesh.vertices, mesh.faces, mesh.vertex_normals)


def test_soft_spots_and_thin_plates_are_kept():
    mesh = extract_mesh(shell_with_a_soft_spot, gray, 1.0, resolution=64)
    assert np.linalg.norm(mesh.vertices, axis=1).min() > 0.42, "the hollow behind the spot must not open"
    mesh = extract_mesh(plate, gray, 1.0, resolution=64)
    np.testing.assert_allclose(mesh.vertices.max(0)[:2], 0.5, atol=0.03)
    assert np.abs(mesh.vertices[:, 2]).max() < 0.04


def test_faults_are_found():
    box = trimesh.creation.box()
    vertices, faces = box.vertices, box.faces
    assert not find_faults(vertices, faces, vertex_normals(vertices, faces))
    assert find_faults(vertices, faces[1:]).open_edges == 3
    doubled = find_faults(vertices, np.concatenate([faces, faces[:1]]))
    assert doubled.doubled_faces == 1 and doubled.crowded_edges == 3 and not doubled.two_manifold
    corner = find_faults(np.concatenate([vertices, vertices + 1]), np.concatenate([faces, faces + 8]))
    assert corner.crowded_vertices == 1 and corner.closed and not corner.two_manifold
    assert find_faults(vertices, np.concatenate([faces[1:], faces[:1, ::-1]])).flipped_edges == 3
    assert find_faults(vertices, faces, np.zeros((8, 3))).bad_normals == 8
    flap = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1e-3]], float)
    folded = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [0, 2, 3]])
    assert find_faults(flap, folded).folded_edges > 0 and "folded edges" in str(find_faults(flap, folded))


def test_normals_of_triangles_that_cancel_each_other_are_unit():
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    normals = vertex_normals(triangle, np.array([[0, 1, 2], [0, 2, 1]]))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)


def test_what_cannot_be_repaired_is_told(monkeypatch):
    monkeypatch.setattr("hifa.export.mesh.decimated", lambda vertices, faces, _: (vertices, faces[1:]))
    with pytest.warns(MeshWarning, match="could not be repaired and has 3 open edges"):
        mesh = extract_mesh(ball(0.5), gray, 1.0, resolution=32, max_faces=100)
    assert mesh.faults.open_edges == 3


def test_a_mesh_that_cannot_have_so_few_triangles_says_so():
    with pytest.warns(MeshWarning, match="more than max_faces=2: fewer would change its topology"):
        mesh = extract_mesh(ball(0.5), gray, 1.0, resolution=16, max_faces=2)
    assert 2 < len(mesh.faces) <= 20 and mesh.faults.two_manifold


def test_decimation_keeps_the_shape():
    sphere = trimesh.creation.icosphere(4)
    vertices, faces = decimated(sphere.vertices, sphere.faces, 500)
    assert len(faces) == 500 and not find_faults(vertices, faces)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.02


def test_face_budget():
    mesh = extract_mesh(ball(0.5), gray, 1.0, resolution=64, threshold=30.0, max_faces=1000)
    assert 900 < len(mesh.faces) <= 1000
    assert closed(mesh).volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.02)
