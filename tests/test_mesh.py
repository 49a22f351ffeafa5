"""Meshes: a field with a known shape is exported, opened again as a stranger would, and compared with the shape."""

import threading
import time
import zipfile

import numba
import numpy as np
import pytest
import torch
import trimesh

from benchmarks.mesh_render import render_mesh
from hifa.export import EmptyFieldError, bake_texture, export_mesh, extract_mesh, write_mesh, write_ply
from hifa.export.check import find_faults
from hifa.export.decimate import decimated
from hifa.export.grid import density_grid
from hifa.export.mesh import MeshWarning
from hifa.export.surface import vertex_normals
from hifa.export.unwrap import unwrap
from hifa.export.views import seen_color
from hifa.storage.files import atomically
from hifa.toybox import shapes, world
from hifa.toybox.render import orbit_pose, render


RED, GREEN, BLUE, YELLOW = (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.2, 0.2, 0.9), (0.9, 0.8, 0.1)
# A blue slab with a red ball in front, a green one on the left (+y) and a yellow cone on top.
SIGNPOST = [
    shapes.Part(shapes.BOX, (0.35, 0.25, 0.15, 0.02), (0, 0, -0.1), BLUE),
    shapes.Part(shapes.ELLIPSOID, (0.2, 0.2, 0.2), (0.45, 0, -0.1), RED),
    shapes.Part(shapes.ELLIPSOID, (0.14, 0.14, 0.14), (0, 0.35, -0.1), GREEN),
    shapes.Part(shapes.CONE, (0.2, 0.03, 0.25), (-0.1, 0, 0.25), YELLOW),
]


@numba.njit(cache=True)
def nearest_part(kind, operation, size, center, rotation, points):
    out = np.empty(len(points), np.int64)
    for i in range(len(points)):
        _, out[i] = shapes.distance(kind, operation, size, center, rotation, points[i, 0], points[i, 1], points[i, 2])
    return out


def field_of(shape: shapes.Shape, softness: float = 0.004):
    """Density 60 inside, falling to 0 over a few `softness`, and the flat color of the nearest part."""

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
    """The mesh for trimesh, after checking that it is closed and consistently wound."""
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.is_watertight and solid.is_winding_consistent
    return solid


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


def test_level_set_of_a_ball_is_exact_to_a_fiftieth_of_a_cell():
    mesh = extract_mesh(ball(0.5), gray, 1.0, resolution=64, threshold=30.0, smooth=0)
    radii = np.linalg.norm(mesh.vertices, axis=1)
    np.testing.assert_allclose(radii, 0.5, atol=6e-4)  # a cell is 0.031
    assert closed(mesh).volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.01)
    assert ((mesh.normals * mesh.vertices).sum(1) / radii).min() > 0.99
    # At depth x / 100 a ray has passed 0.6 log(1 + e^x). Nearly all is absorbed in the end, half of it at x = 0.78.
    assert np.linalg.norm(mesh.seen, axis=1).mean() == pytest.approx(0.5 - 0.0078, abs=1e-3)


def test_volume_of_an_object():
    shape = world.make_scene("mug", "blue").shape
    mesh = extract_mesh(*field_of(shape, 0.01), 1.0, resolution=96, threshold=30.0, max_faces=20_000)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.8, 0.8, 101)] * 3), -1).reshape(-1, 3)
    truth = (shapes.signed_distance(shape, grid) < 0).mean() * 1.616**3
    assert closed(mesh).volume == pytest.approx(truth, rel=0.03)


def test_soft_fields_are_cut_where_their_pictures_are_half_opaque():
    density = ball(0.5, softness=0.1, peak=8.0)
    mesh = extract_mesh(density, gray, 1.0, resolution=64)
    offsets, along = torch.linspace(0, 1, 201), torch.linspace(-1, 1, 401)
    points = torch.stack(torch.meshgrid(offsets, along, torch.zeros(1), indexing="ij"), -1).reshape(-1, 3)
    passed = density(points).reshape(201, 401).sum(1) * (2 / 400)
    outline = offsets[passed > np.log(2)].max().item()  # 0.71: beyond the 0.5 where the density is halved
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(outline, rel=0.06)


def test_refined_grid_is_the_whole_grid_near_the_surface_at_a_quarter_of_the_cost():
    density, asked = field_of(world.make_scene("chair", "red").shape)[0], []

    def counted(points):
        asked.append(len(points))
        return density(points)

    grid = density_grid(counted, 1.0, 128, 14.0)
    axis = np.linspace(-1, 1, 129, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    whole = density(torch.from_numpy(points)).numpy().reshape(grid.shape)
    np.testing.assert_array_equal(grid > 14, whole > 14)
    assert sum(asked) < 129**3 / 4


def test_floaters_and_hollows_are_dropped():
    body, speck, hollow = ball(0.5), ball(0.08, center=(0.7, 0.7, 0.0)), ball(0.3)
    mesh = extract_mesh(lambda p: (body(p) - hollow(p) + speck(p)).clamp(min=0), gray, 1.0, resolution=64)
    assert closed(mesh).body_count == 1
    assert 0.49 < np.linalg.norm(mesh.vertices, axis=1).min() and np.abs(mesh.vertices).max() < 0.55


def test_what_reaches_the_cube_is_closed_at_its_faces():
    mesh = extract_mesh(lambda p: 100.0 * (p[:, 2] < 0.25), gray, 0.5, resolution=32, smooth=0)
    assert closed(mesh).volume == pytest.approx(0.75, rel=0.05)
    np.testing.assert_allclose(mesh.vertices.min(0), -0.5, atol=5e-3)  # a cell is 0.031


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


def test_fog_is_no_surface():
    """Along the cube's side its optical depth is 0.74, more than a half opaque picture has."""
    with pytest.raises(EmptyFieldError, match="field is empty"):
        extract_mesh(lambda points: torch.full((len(points),), 0.37), gray, 1.0, resolution=64)


def test_soft_spots_and_thin_plates_are_kept():
    mesh = extract_mesh(shell_with_a_soft_spot, gray, 1.0, resolution=64)
    assert np.linalg.norm(mesh.vertices, axis=1).min() > 0.42, "the hollow behind the spot must not open"
    mesh = extract_mesh(plate, gray, 1.0, resolution=64)
    np.testing.assert_allclose(mesh.vertices.max(0)[:2], 0.5, atol=0.03)
    assert np.abs(mesh.vertices[:, 2]).max() < 0.04


def test_gaps_that_a_camera_looks_through_stay_open():
    """A narrow slit through a box: a ball of the closing does not fit, but the other side shows through it."""

    def density(points):
        box = points.abs().amax(1) < 0.4
        return 100.0 * (box & (points[:, 1].abs() > 0.06))

    mesh = extract_mesh(density, gray, 1.0, resolution=64)
    assert closed(mesh).volume == pytest.approx(0.8 * 0.8 * 0.68, rel=0.08)


def test_parts_that_hover_beside_the_object_are_kept():
    nose = ball(0.06, center=(0.6, 0.0, 0.0))
    mesh = extract_mesh(lambda p: torch.maximum(ball(0.5)(p), nose(p)), gray, 1.0, resolution=64)
    assert mesh.vertices[:, 0].max() > 0.63 and closed(mesh)


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


def test_fields_without_a_surface_are_errors():
    with pytest.raises(EmptyFieldError, match=r"largest density .* is 3 and the surface is drawn at 5"):
        extract_mesh(lambda p: 3 * torch.ones(len(p)), gray, 1.0, resolution=16, threshold=5.0)
    with pytest.raises(EmptyFieldError, match="empty"):
        extract_mesh(lambda p: torch.zeros(len(p)), gray, 1.0, resolution=16)
    with pytest.raises(EmptyFieldError, match="opaque everywhere"):
        extract_mesh(lambda p: 80 * torch.ones(len(p)), gray, 1.0, resolution=16)
    with pytest.raises(ValueError, match="NaN or infinite at 4913 of 4913"):
        extract_mesh(lambda p: torch.full((len(p),), torch.nan), gray, 1.0, resolution=16)


def test_color_is_the_mean_over_the_cameras_that_see_a_point():
    """The color is how much a ball faces the camera: 1 for the cameras that look straight at a point."""

    def facing(points, directions):
        outward = torch.nn.functional.normalize(points, dim=1)
        return -(outward * directions).sum(1, keepdim=True).expand(-1, 3)

    mesh = extract_mesh(ball(0.5), facing, 1.0, resolution=64, max_faces=2000)
    equator = np.abs(mesh.vertices[:, 2]) < 0.1
    # The mean of cos over a half circle, weighted by cos, is pi / 4; distance and elevation of the cameras lower it.
    assert 0.6 < mesh.colors[equator].mean() < 0.85
    assert np.ptp(mesh.colors[equator]) < 0.2
    # Straight above it is 1, and 45 degrees off cos 45.
    straight, expected = np.array([[1, 0, 0], [0, 0.6, -0.8]], np.float32), (1 + 3 * np.sqrt(0.5)) / 4
    np.testing.assert_allclose(seen_color(facing, straight, straight), expected, rtol=1e-5)
    texture = bake_texture(mesh, facing, 128).texture / 255.0
    assert mesh.colors.min() - 0.05 < texture.min() and texture.max() < expected + 0.05


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
    """xatlas holds the interpreter for as long as it works, about a second for this one."""
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


def test_a_failed_write_leaves_the_old_file(tmp_path, signpost):
    path = write_ply(tmp_path / "post.ply", signpost[1])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomically(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="Cannot write .*post.ply/inside.ply: Not a directory"):
        write_ply(path / "inside.ply", signpost[1])
