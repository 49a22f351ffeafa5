"""Test mesh files: open them with other software and compare them with the object."""

import zipfile

import numpy as np
import pytest
import trimesh

from benchmarks.mesh_render import render_mesh
from hifa.export import bake_texture, export_mesh, extract_mesh, write_mesh, write_ply
from hifa.storage.files import atomically
from hifa.toybox import shapes
from hifa.toybox.render import orbit_pose, render
from tests.helpers.meshes import ball, closed, field_of, gray


RED, GREEN, BLUE, YELLOW = (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.2, 0.2, 0.9), (0.9, 0.8, 0.1)
# A blue slab with a red ball in front, a green one on the left (+y) and a yellow cone on top.
SIGNPOST = [
    shapes.Part(shapes.BOX, (0.35, 0.25, 0.15, 0.02), (0, 0, -0.1), BLUE),
    shapes.Part(shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0.45, 0, -0.1), RED),
    shapes.Part(shapes.ELLIPSOID, (0.14, 0.14, 0.14), (0, 0.35, -0.1), GREEN),
    shapes.Part(shapes.CONE, (0.2, 0.03, 0.25), (-0.1, 0, 0.25), YELLOW),
]


def overlap(a, b) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def signpost(tmp_path_factory):
    """The signpost's shape, its mesh, and a folder with all files of it."""
    shape, folder = shapes.pack(SIGNPOST), tmp_path_factory.mktemp("signpost")
    density, color = field_of(shape)
    mesh = extract_mesh(density, color, 1.0, max_faces=6000)
    textured = bake_texture(mesh, color, 512)
    for name in ("post.glb", "a post.obj", "post.zip", "post.ply"):
        write_mesh(folder / name, textured)
    return shape, mesh, folder


@pytest.mark.parametrize("azimuth, elevation", [(0, 10), (90, 10), (180, 10), (270, 10), (30, 70)])
@pytest.mark.parametrize("name", ["post.glb", "a post.obj"])
def test_reopened_file_looks_like_the_object(signpost, name, azimuth, elevation):
    shape, _, folder = signpost
    pose = orbit_pose(azimuth, elevation, 3.0)
    color, mask = render_mesh(folder / name, pose, 128)
    picture = render(shape, pose, size=128, samples=1)
    assert overlap(mask, picture.mask > 0.5) > 0.94
    # The reference is lit and the file is not, so compare hues: the light only scales the color.
    both = mask & (picture.mask > 0.5)
    hue, expected = (c[both] / c[both].max(1, keepdims=True) for c in (color, picture.color))
    # Seen from above, the corners between parts are rounded by the closing, and their colors mix.
    assert np.abs(hue - expected).mean() < (0.045 if elevation > 45 else 0.03)


def test_colors_come_back_and_no_seam_shows(signpost):
    _, _, folder = signpost
    for azimuth in (20, 200):
        color, mask = render_mesh(folder / "post.glb", orbit_pose(azimuth, 25, 3.0), 256)
        distances = np.abs(color[mask][:, None] - np.array([RED, GREEN, BLUE, YELLOW])).max(-1).min(1)
        # Where two parts meet, pictures mix their colors over a cell; nowhere else do others appear.
        assert np.quantile(distances, 0.8) < 1.5 / 255


def test_file_axes(signpost):
    """+Y is up (the cone), +Z the front (the red ball), +X the left of the object (the green ball)."""
    _, mesh, folder = signpost
    np.testing.assert_allclose(mesh.vertices.max(0), (0.65, 0.49, 0.5), atol=0.015)
    for name in ("post.glb", "a post.obj", "post.ply"):
        reopened = trimesh.load(folder / name, process=False, force="mesh")
        np.testing.assert_allclose(reopened.vertices.max(0), (0.49, 0.5, 0.65), atol=0.015)
        assert (reopened.vertex_normals[reopened.vertices[:, 1].argmax()]).argmax() == 1
        assert reopened.volume == pytest.approx(closed(mesh).volume, rel=1e-3)


def test_glb_material_is_matt_and_normals_are_stored(signpost):
    scene = trimesh.load(signpost[2] / "post.glb", process=False, force="mesh")
    assert scene.visual.material.metallicFactor == 0 and scene.visual.material.roughnessFactor == 1
    assert b'"NORMAL"' in (signpost[2] / "post.glb").read_bytes()


def test_ply_has_vertex_colors_and_zip_has_three_files(signpost):
    _, mesh, folder = signpost
    ply = trimesh.load(folder / "post.ply", process=False)
    np.testing.assert_array_equal(ply.visual.vertex_colors[:, :3], np.round(mesh.colors * 255))
    assert tuple(ply.visual.vertex_colors[ply.vertices[:, 2].argmax(), :3]) == (230, 26, 26)
    assert len(ply.faces) == len(mesh.faces) and ply.is_watertight
    with zipfile.ZipFile(folder / "post.zip") as archive:
        assert sorted(archive.namelist()) == ["post.mtl", "post.obj", "post.png"]
        assert b"map_Kd post.png" in archive.read("post.mtl")


def test_export_mesh_by_suffix_and_its_errors(tmp_path):
    settings = dict(resolution=32, max_faces=500, texture_size=64)
    for suffix in (".glb", ".OBJ", ".zip", ".ply"):
        path = export_mesh(tmp_path / f"ball{suffix}", ball(0.5), gray, 1.0, **settings)
        assert path.stat().st_size > 1000
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(ValueError, match=r"unsupported suffix '.stl'. Use .glb, .obj, .zip, .ply"):
        export_mesh(tmp_path / "ball.stl", ball(0.5), gray, 1.0)
    with pytest.raises(OSError, match="Cannot write .*nowhere/ball.glb: its folder does not exist"):
        export_mesh(tmp_path / "nowhere" / "ball.glb", ball(0.5), gray, 1.0)


def test_a_failed_write_leaves_the_old_file(tmp_path, signpost):
    path = write_ply(tmp_path / "post.ply", signpost[1])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomically(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="Cannot write .*post.ply/inside.ply: Not a directory"):
        write_ply(path / "inside.ply", signpost[1])
