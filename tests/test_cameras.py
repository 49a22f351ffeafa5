"""Cameras: axes and pixels worked out by hand, borders of the views, and how views are drawn."""

import math

import numpy as np
import pytest
import torch

from hifa.cameras import VIEWS, Camera, Rays, camera_to_world, front_or_back, image_rays, sample_camera, view_of
from hifa.export.turntable import turntable_cameras
from hifa.toybox import vocabulary, world
from hifa.toybox.render import orbit_pose


RANGES = {"radius": (2.0, 3.0), "fov_deg": (30.0, 50.0), "elevation_deg": (-10.0, 75.0)}


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "azimuth, elevation, right, down, position",
    [
        # In front of the object, which looks along +x at us: its left, +y, is on our right.
        (0, 0, (0, 1, 0), (0, 0, -1), (2, 0, 0)),
        # A quarter turn counter-clockwise seen from above: on +y, with -x on the right.
        (90, 0, (-1, 0, 0), (0, 0, -1), (0, 2, 0)),
        (180, 0, (0, -1, 0), (0, 0, -1), (-2, 0, 0)),
        # Straight overhead: the front, +x, is at the lower edge of the image.
        (0, 90, (0, 1, 0), (1, 0, 0), (0, 0, 2)),
        (0, -90, (0, 1, 0), (-1, 0, 0), (0, 0, -2)),
    ],
)
def test_axes_by_hand(azimuth, elevation, right, down, position):
    pose = camera_to_world(Camera(azimuth, elevation, radius=2))
    assert pose.shape == (3, 4) and pose.dtype == torch.float32
    close(pose[:, 0], right)
    close(pose[:, 1], down)
    close(pose[:, 2], [-value / 2 for value in position])
    close(pose[:, 3], position)


@pytest.mark.parametrize("azimuth", [0, 33, 190, 359])
@pytest.mark.parametrize("elevation", [-60, 0, 40, 89.9])
def test_pose_is_a_rotation_that_looks_at_the_origin_with_up_up(azimuth, elevation):
    pose = camera_to_world(Camera(azimuth, elevation, radius=3))
    axes, position = pose[:, :3].double(), pose[:, 3]
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.det(axes).item() == pytest.approx(1)
    close(position + 3 * pose[:, 2], (0, 0, 0), atol=1e-5)
    assert pose[2, 0].item() == pytest.approx(0, abs=1e-7), "the horizon is level"
    assert pose[2, 1] < 0, "image rows go down"


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (57, 20), (200, -10), (310, 80)])
def test_same_pose_as_the_world_that_the_prior_has_seen(azimuth, elevation):
    pose = camera_to_world(Camera(azimuth, elevation, radius=2.5)).numpy()
    np.testing.assert_allclose(pose, orbit_pose(azimuth, elevation, 2.5), atol=1e-6)


def test_ray_through_a_pixel_by_hand():
    # 4 pixels at 90 degrees: focal length 4 / 2 / tan 45 = 2. The center of the top right pixel is at (3.5, 0.5), that
    # is 1.5 right of and 1.5 above the middle: (0.75, -0.75, 1) in camera axes, length sqrt(2.125).
    rays = image_rays(camera_to_world(Camera(0, 0, radius=2)), 90.0, 4)
    assert len(rays) == 16
    close(rays.origins[3], (2, 0, 0))
    close(rays.directions[3], [value / math.sqrt(2.125) for value in (-1, 0.75, 0.75)])
    # Row 2, column 1: 0.5 left of the middle, 0.5 below it.
    close(rays.directions[2 * 4 + 1], [value / math.sqrt(1.125) for value in (-1, -0.25, -0.25)])


@pytest.mark.parametrize("size", [1, 7, 32])
def test_ray_directions_have_unit_length(size):
    rays = image_rays(camera_to_world(Camera(123, 40, radius=2.5)), 60.0, size)
    assert rays.origins.shape == rays.directions.shape == (size * size, 3)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(size * size), rtol=0, atol=1e-6)


def test_middle_of_an_odd_image_looks_at_the_origin():
    camera = Camera(77, 33, radius=2.5)
    pose = camera_to_world(camera)
    rays = image_rays(pose, camera.fov_deg, 5)
    torch.testing.assert_close(rays.directions[12], pose[:, 2], rtol=0, atol=1e-6)


def test_field_of_view_spans_the_image_from_edge_to_edge():
    # Pixel centers end half a pixel before the edge: at 50 degrees and 10 pixels, tan = tan(25) * 9 / 10.
    pose = camera_to_world(Camera(0, 0, radius=2))
    first = image_rays(pose, 50.0, 10).directions[5 * 10]
    across, forward = first @ pose[:, 0], first @ pose[:, 2]
    assert (-across / forward).item() == pytest.approx(math.tan(math.radians(25)) * 0.9, rel=1e-5)


def test_rays_can_be_indexed():
    rays = Rays(torch.arange(12.0).view(4, 3), torch.ones(4, 3))
    part = rays[1:3]
    assert len(part) == 2 and torch.equal(part.origins, rays.origins[1:3])


@pytest.mark.parametrize(
    "azimuth, elevation, view",
    [
        (0, 0, "front view"), (44.9, 0, "front view"), (-44.9, 0, "front view"), (315.1, 0, "front view"),
        (360, 0, "front view"), (730, 0, "front view"),
        (45, 0, "side view"), (-45, 0, "side view"), (315, 0, "side view"), (90, 0, "side view"),
        (270, 0, "side view"), (135, 0, "side view"), (225, 0, "side view"),
        (135.1, 0, "back view"), (180, 0, "back view"), (-180, 0, "back view"), (224.9, 0, "back view"),
        (0, 60, "front view"), (180, 60, "back view"), (0, 60.1, "overhead view"), (180, 90, "overhead view"),
    ],
)  # fmt: skip
def test_view_words_at_their_borders(azimuth, elevation, view):
    assert view_of(azimuth, elevation) == view
    assert VIEWS[Camera(azimuth, elevation).view] == view
    assert world.view_of(azimuth, elevation) == view


def test_views_are_those_of_the_captions():
    assert VIEWS == vocabulary.VIEWS == world.VIEWS


def test_sampled_cameras_are_uniform_on_the_sphere():
    generator = torch.Generator().manual_seed(0)
    cameras = [sample_camera(generator, **RANGES) for _ in range(2000)]
    columns = {
        "azimuth": ([c.azimuth_deg for c in cameras], 0, 360),
        # Equal areas of a sphere lie between equal steps of the height, the sine of the elevation.
        "height": ([math.sin(math.radians(c.elevation_deg)) for c in cameras], *np.sin(np.radians([-10, 75]))),
        "radius": ([c.radius for c in cameras], 2, 3),
        "fov": ([c.fov_deg for c in cameras], 30, 50),
    }
    for name, (values, low, high) in columns.items():
        share = (np.sort(values) - low) / (high - low)
        assert share[0] >= -1e-9 and share[-1] <= 1 + 1e-9, name
        # Kolmogorov-Smirnov: 1.63 / sqrt(n) is passed by one sample in a hundred, and the seed is fixed.
        assert np.abs(share - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / math.sqrt(2000), name


def test_front_or_back_by_hand():
    assert [front_or_back(a) for a in (0, 90, 179, 180, 270, 359, 360)] == [-45, 0, 44.5, 135, 180, 224.5, -45]


def test_front_or_back_keeps_azimuths_uniform_and_names_no_side():
    azimuths = [front_or_back(azimuth) for azimuth in np.arange(0.25, 360, 0.5)]
    np.testing.assert_allclose(azimuths[:360], np.arange(-44.875, 45, 0.25))
    np.testing.assert_allclose(azimuths[360:], np.arange(135.125, 225, 0.25))
    assert [view_of(azimuth, 15) for azimuth in azimuths] == ["front view"] * 360 + ["back view"] * 360


def test_sampling_is_a_function_of_the_generator_alone():
    before = torch.get_rng_state()
    first = sample_camera(torch.Generator().manual_seed(3), **RANGES)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert sample_camera(torch.Generator().manual_seed(3), **RANGES) == first
    assert sample_camera(torch.Generator().manual_seed(4), **RANGES) != first


def test_sampling_a_single_point():
    camera = sample_camera(torch.Generator(), radius=(2, 2), fov_deg=(40, 40), elevation_deg=(15, 15))
    assert (camera.radius, camera.fov_deg) == (2, 40)
    assert camera.elevation_deg == pytest.approx(15)


def test_orbit_starts_in_front_and_turns_counter_clockwise():
    cameras = turntable_cameras(8, elevation_deg=10, radius=3, fov_deg=35)
    assert [c.azimuth_deg for c in cameras] == [0, 45, 90, 135, 180, 225, 270, 315]
    assert {(c.elevation_deg, c.radius, c.fov_deg) for c in cameras} == {(10, 3, 35)}
    # Counter-clockwise seen from above: from +x towards +y.
    assert camera_to_world(cameras[1])[1, 3] > 0
