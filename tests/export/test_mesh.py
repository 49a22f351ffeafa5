"""Test meshes of fields with a known surface: shape, volume, colors, and fields without a surface."""

import numpy as np
import pytest
import torch

from hifa.export import EmptyFieldError, bake_texture, extract_mesh
from hifa.export.grid import density_grid
from hifa.export.views import seen_color
from hifa.toybox import shapes, world
from tests.helpers.meshes import ball, closed, field_of, gray


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


def test_fog_is_no_surface():
    """Along the cube's side its optical depth is 0.74, more than a half opaque picture has."""
    with pytest.raises(EmptyFieldError, match="field is empty"):
        extract_mesh(lambda points: torch.full((len(points),), 0.37), gray, 1.0, resolution=64)


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
