"""Cameras of the ring, and the geometry between images, world and volumes."""

import json

import pytest
import torch

from hifa.cameras import Camera, camera_to_world, image_rays
from hifa.multiview.cameras import ViewRing, world_to_camera
from hifa.multiview.projection import frustum_points, project, sample_images, sample_volumes, volume_points
from tests.helpers.paths import GOLDEN_FOLDER


CAMERAS = json.loads((GOLDEN_FOLDER / "syncdreamer_cameras.json").read_text())


def test_ring_is_the_published_one():
    ring = ViewRing()
    torch.testing.assert_close(ring.world_to_camera(), torch.tensor(CAMERAS["poses"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(ring.intrinsics(256), torch.tensor(CAMERAS["K_256px"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        torch.tensor(ring.azimuths_deg), torch.tensor(CAMERAS["azimuth_deg"]), rtol=0, atol=1e-4
    )
    assert ring.fov_deg == pytest.approx(49.13, abs=0.01)
    assert len(ring.cameras()) == 16


def test_poses_invert_those_of_the_project():
    camera = Camera(azimuth_deg=70.0, elevation_deg=-20.0, radius=2.0)
    pose = camera_to_world(camera)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    in_camera = points @ world_to_camera(camera)[:, :3].T + world_to_camera(camera)[:, 3]
    torch.testing.assert_close(in_camera @ pose[:, :3].T + pose[:, 3], points)


def test_center_is_seen_in_the_middle_of_every_view():
    ring = ViewRing(num_views=5, elevation_deg=10.0, radius=2.0, focal_length=1.0)
    pixels, depths = project(torch.zeros(1, 3), ring.world_to_camera(), ring.intrinsics(32))
    torch.testing.assert_close(pixels, torch.full((5, 1, 2), 16.0))
    torch.testing.assert_close(depths, torch.full((5, 1), 2.0))


def test_frustum_points_project_back_to_their_pixels():
    ring, depths = ViewRing(), torch.tensor([0.7, 1.5, 2.3])
    points = frustum_points(ring.world_to_camera()[3:5], ring.intrinsics(4), 4, depths)
    assert points.shape == (2, 3, 4, 4, 3)
    pixels, found = project(points[1].reshape(-1, 3), ring.world_to_camera()[4:5], ring.intrinsics(4))
    torch.testing.assert_close(found.reshape(3, 16), depths[:, None].expand(3, 16))
    v, u = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    expected = torch.stack([u, v], -1).reshape(16, 2).repeat(3, 1)
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-5)


def test_half_a_pixel_to_the_rays_of_the_project():
    """Rays of `hifa.cameras` go through pixel centers, those of the networks through corners: as documented."""
    ring = ViewRing()
    camera = ring.cameras()[2]
    rays = image_rays(camera_to_world(camera), camera.fov_deg, 8)
    pixels, _ = project(rays.origins + 1.3 * rays.directions, ring.world_to_camera()[2:3], ring.intrinsics(8))
    torch.testing.assert_close(pixels[0, 0], torch.tensor([0.5, 0.5]), rtol=0, atol=1e-4)


def test_points_behind_a_camera_do_not_flip_over():
    ring = ViewRing()
    pixels, depths = project(torch.tensor([[3.0, 0.1, 2.0]]), ring.world_to_camera()[:1], ring.intrinsics(32))
    assert depths.item() < 0 and pixels.abs().max() > 100


def test_volume_axes():
    """A volume that holds x, y, z at its points gives back the coordinates where it is sampled."""
    grid = volume_points(5, 0.5)
    assert grid[4, 0, 2].tolist() == [0.0, -0.5, 0.5]  # z last, y first, x in the middle
    volume = grid.movedim(-1, 0)[None]
    points = torch.tensor([0.31, -0.2, 0.07]).reshape(1, 1, 1, 1, 3)
    torch.testing.assert_close(sample_volumes(volume, points, 0.5).flatten(), points.flatten())
    assert sample_volumes(volume + 1, points * 3, 0.5).abs().max() == 0  # outside


def test_images_are_sampled_from_corner_to_corner():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    pixels = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [1.5, 0.0], [9.0, 0.0]]])
    assert sample_images(images, pixels).flatten().tolist() == pytest.approx([0.0, 15.0, 1.5, 0.0])
