"""The consistency score falls with every kind of damage, and the elevation of a picture is found."""

import numpy as np
import pytest
import torch

from hifa.cameras import Camera, camera_to_world
from hifa.multiview.cameras import ViewRing
from hifa.multiview.consistency import consistency, foregrounds, input_agreement
from hifa.toybox.render import render
from hifa.toybox.world import RADIUS, make_scene


RING = ViewRing(radius=2.4)  # Toybox's ball of radius 0.8, as large in the image as SyncDreamer's cube


def view(camera: Camera) -> torch.Tensor:
    shape = make_scene("duck", "yellow").shape
    picture = render(shape, camera_to_world(camera).numpy(), 64, camera.fov_deg, background=(1.0, 1.0, 1.0))
    return torch.from_numpy(np.asarray(picture.color, np.float32))


@pytest.fixture(scope="module")
def images():
    return torch.stack([view(camera) for camera in RING.cameras()])


def score(images: torch.Tensor):
    return consistency(images, RING, half_extent=RADIUS)


@pytest.fixture(scope="module")
def good(images):
    return score(images)


def test_renders_of_one_object_agree(good):
    assert good.silhouette > 0.93 and good.color > 0.6
    assert good.score == pytest.approx(good.silhouette * good.color)
    assert len(good.views) == 16 and min(good.views) > 0.4


def test_a_wrong_shape_costs_silhouette_and_is_found(images, good):
    damaged = images.clone()
    damaged[4] = images[4].roll(12, dims=1)
    bad = score(damaged)
    assert bad.silhouette < good.silhouette - 0.1
    assert int(np.argmin(bad.views)) == 4


def test_a_wrong_color_costs_color_and_is_found(images, good):
    damaged = images.clone()
    damaged[9] = images[9][..., [2, 0, 1]]
    bad = score(damaged)
    assert bad.silhouette == pytest.approx(good.silhouette, abs=0.02)
    assert bad.color < good.color - 0.05
    assert int(np.argmin(bad.views)) == 9


def test_the_order_of_views_matters(images, good):
    assert score(images.flip(0)).score < 0.75 * good.score
    assert score(images[[0] * 16]).score < 0.75 * good.score  # the picture sixteen times


def test_nothing_is_not_consistent(images):
    empty = score(torch.ones_like(images))
    assert empty.score == 0 and set(empty.views) == {0.0}
    assert input_agreement(torch.ones_like(images), images[0], 30.0, RING, RADIUS) == 0


@pytest.mark.parametrize("elevation", [0.0, 30.0])
def test_elevation_of_the_picture_is_found(images, elevation):
    picture = view(Camera(0.0, elevation, RING.radius, RING.fov_deg))
    candidates = [-30.0, 0.0, 30.0, 60.0]
    agreement = [input_agreement(images, picture, candidate, RING, RADIUS) for candidate in candidates]
    assert candidates[int(np.argmax(agreement))] == elevation


def test_size_in_the_picture_does_not_matter(images):
    small = torch.nn.functional.pad(images[0], (0, 0, 40, 20, 15, 45), value=1.0)
    near = input_agreement(images, images[0], 30.0, RING, RADIUS)
    assert input_agreement(images, small, 30.0, RING, RADIUS) == pytest.approx(near, abs=1e-3)


def test_highlights_are_not_holes():
    image = torch.ones(1, 8, 8, 3)
    image[0, 2:7, 2:7] = 0.3
    image[0, 4, 4] = 1.0
    assert foregrounds(image).sum() == 25


def test_what_is_seen_through_an_object_is_not_part_of_it():
    image = torch.ones(1, 32, 32, 3)
    image[0, 4:28, 4:28] = 0.3
    image[0, 10:22, 10:22] = 1.0
    assert foregrounds(image).sum() == 24**2 - 12**2


def test_a_sheet_has_one_image_a_camera(images):
    with pytest.raises(ValueError, match=r"images must be \(16, H, W, 3\), one per camera, got \(15, 64, 64, 3\)"):
        score(images[:15])
