"""Given views: sheets and lists, masks, and cameras that see what the field's cameras see."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from hifa.cameras import camera_to_world, image_rays
from hifa.multiview import ViewRing, given_views, sheet
from hifa.multiview.given_views import RING_EXTENT, GivenViews, read_views, ring_cameras
from hifa.rendering.image import render_picture
from hifa.rendering.rays import RaySampling
from hifa.toybox import world
from hifa.toybox.training import multiview_dataset
from tests.helpers.paths import GOLDEN_FOLDER
from tests.helpers.views import disc, shades


def test_sheet_list_array_and_tensor_are_the_same_views():
    images = [image.convert("RGB") for image in shades()]
    first = read_views(images, bound=1.0)
    array = np.stack([np.asarray(image) for image in images])
    tensor = torch.from_numpy(array)
    numbers = (array, array.astype(np.int64), array / 255, tensor, tensor.long(), tensor / 255)
    for views in (sheet(images), *numbers, tuple(images), first):
        other = read_views(views, bound=1.0)
        assert torch.equal(other.color, first.color) and torch.equal(other.mask, first.mask)
        assert other.cameras == first.cameras == ring_cameras(1.0)
    assert len(first) == 16 and first.size == 32 and first.color[3, 16, 16, 0] == 30


def test_the_sheet_of_views_gives_them_back():
    views = read_views(shades(), bound=1.0)
    again = read_views(views.sheet(), bound=1.0)
    assert torch.equal(again.color, views.color) and torch.equal(again.mask, views.mask)


def test_alpha_is_the_mask_and_color_is_put_on_white():
    image = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((100, 100, 100, 51), (2, 2, 6, 6))
    views = read_views([image] * 16, bound=1.0)
    assert views.mask[0, 4, 4] == 51 and views.mask[0, 0, 0] == 0
    assert views.color[0, 4, 4].tolist() == [224] * 3 and views.color[0, 0, 0].tolist() == [255] * 3


def test_without_alpha_what_is_not_white_is_the_object_highlights_included():
    image = disc(alpha=False)
    image.putpixel((16, 16), (255, 255, 255))
    mask = read_views([image] * 16, bound=1.0).mask[0]
    assert mask[16, 16] == 255 and mask[0, 0] == 0
    assert torch.equal(mask, read_views([disc()] * 16, bound=1.0).mask[0])


def ring_of_red(level: int, inner: float) -> PIL.Image.Image:
    """A red disc on white of 77 pixels across, with another of radius `inner` and a gray level in its middle."""
    image = np.asarray(disc(128, alpha=False)).copy()
    image[np.asarray(disc(128, radius=inner).getchannel("A")) > 0] = level
    return PIL.Image.fromarray(image)


@pytest.mark.parametrize(
    "level, inner, hole",
    [
        (255, 0.12, True),  # a donut, 16 % of the disc
        (252, 0.12, True),  # the background of a hallucinated donut
        (249, 0.12, False),  # a label: white, but not as white as the background
        (255, 0.025, False),  # a highlight, 0.7 %
        (255, 0.04, True),  # 1.8 %
    ],
)
def test_a_large_region_of_pure_background_in_an_object_is_a_hole(level, inner, hole):
    mask = read_views([ring_of_red(level, inner)] * 16, bound=1.0).mask[0]
    assert (mask[64, 64] == 0) == hole and mask[64, 64 + 20] == 255 and mask[0, 0] == 0


def test_the_handle_of_a_mug_is_open_in_its_views():
    camera = multiview_dataset.ring_from(270.0)[0]
    seen = multiview_dataset.look(world.make_scene("mug", "red").shape, camera, 128)
    views = read_views(np.stack([seen.color] * 16), bound=1.0)
    ours, truth = views.mask[0].numpy() > 127, seen.mask > 0.5
    assert (ours & truth).sum() / (ours | truth).sum() > 0.95, "0.92 with the handle filled"


def test_large_views_are_reduced_by_the_mean():
    image = PIL.Image.fromarray(np.kron([[0, 255], [255, 255]], np.ones((4, 4))).astype(np.uint8)).convert("RGB")
    views = read_views([image] * 16, bound=1.0, max_size=2)
    assert views.size == 2 and views.color[0, :, :, 0].tolist() == [[0, 255], [255, 255]]
    assert read_views([image] * 16, bound=1.0, max_size=1).color[0, 0, 0, 0] == 191


def test_cameras_are_syncdreamers_scaled_to_the_field():
    golden = json.loads((GOLDEN_FOLDER / "syncdreamer_cameras.json").read_text())
    assert golden, "the published cameras are the ring's: see multiview/test_cameras.py"
    for bound in (1.0, 0.5):
        cameras, ring = ring_cameras(bound), ViewRing().cameras()
        assert [c.azimuth_deg for c in cameras] == [22.5 * index for index in range(16)]
        for ours, theirs in zip(cameras, ring, strict=True):
            assert ours.radius == pytest.approx(theirs.radius * bound / RING_EXTENT)
            assert (ours.elevation_deg, ours.fov_deg) == (theirs.elevation_deg, theirs.fov_deg)
    assert ring_cameras(1.0)[0].radius == pytest.approx(2.5), "where the fast preset's cameras are"


def test_given_and_distillation_cameras_agree_in_scale(analytic_field):
    """A ball of radius 0.3 in the ring's world, photographed by the ring, is where any camera sees it in the field."""
    radius = 0.3 / RING_EXTENT
    field = analytic_field(lambda points: 400.0 * (points.norm(dim=-1) < radius))
    sampling = RaySampling(n_coarse=96, n_fine=32)
    for camera in (ring_cameras(1.0)[5], ring_cameras(1.0)[0]):
        picture = render_picture(field, camera, 64, sampling)
        # Its outline is the cone of tangents: tan = r / sqrt(d^2 - r^2), with d = 1.5 and r = 0.3 in the ring's world.
        share = 0.3 / (1.5**2 - 0.3**2) ** 0.5 * ViewRing().focal_length
        assert (picture.opacity.mean() / torch.pi) ** 0.5 == pytest.approx(share, rel=0.02)


def test_sampled_pixels_are_rays_through_their_centers():
    views = read_views(shades(), bound=1.0)
    batch = views.sample(500, torch.Generator().manual_seed(0))
    rays = [image_rays(camera_to_world(camera), camera.fov_deg, views.size) for camera in views.cameras]
    directions = torch.cat([part.directions for part in rays])
    nearest = (batch.rays.directions @ directions.T).argmax(1)
    torch.testing.assert_close(batch.rays.directions, directions[nearest], rtol=0, atol=1e-6)
    torch.testing.assert_close(batch.rays.origins, torch.cat([part.origins for part in rays])[nearest])
    torch.testing.assert_close(batch.color, views.color.view(-1, 3)[nearest].float() / 255)
    torch.testing.assert_close(batch.mask, views.mask.view(-1)[nearest].float() / 255)


def test_poses_are_made_once(monkeypatch):
    views = read_views(shades(), bound=1.0)
    first = views.sample(50, torch.Generator().manual_seed(0))
    monkeypatch.setattr(given_views, "camera_to_world", None)  # any use fails
    again = views.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(first.rays.directions, again.rays.directions)


def test_the_generator_decides_what_is_sampled():
    views = read_views(shades(), bound=1.0)
    first, again, other = (views.sample(50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.rays.directions, again.rays.directions)
    assert not torch.equal(first.rays.directions, other.rays.directions)


def test_tensors_and_back():
    views = read_views(shades(), bound=0.7)
    again = GivenViews.from_tensors(views.tensors())
    assert again.cameras == views.cameras
    assert torch.equal(again.color, views.color) and torch.equal(again.mask, views.mask)


@pytest.mark.parametrize(
    "views, error, words",
    [
        (shades(15), ValueError, "views must be 16, .* got 15"),
        (PIL.Image.new("RGB", (4000, 256)), ValueError, "4096x256 pixels, got 4000x256"),
        ([PIL.Image.new("RGB", (32, 16))] * 16, ValueError, "square and all of the same size, got 32x16"),
        ([*shades(15), disc(16)], ValueError, "of the same size, got .*16x16"),
        ([*shades(15), PIL.Image.new("RGB", (32, 32), "white")], ValueError, "view 15 shows only background"),
        ("sheet.png", TypeError, "got str"),
        ([1, 2], TypeError, "got list"),
        (np.zeros((16, 8, 8)), TypeError, r"got ndarray\[16, 8, 8\]"),
        (np.zeros((16, 8, 8, 3), bool), TypeError, "got bool"),
        (np.full((16, 8, 8, 3), np.nan), ValueError, r"in \[0, 1\], got values from nan"),
        (np.full((16, 8, 8, 3), 200.0), ValueError, "got values from 0 to 200"),
        (np.full((16, 8, 8, 3), 256), ValueError, r"whole numbers in \[0, 255\], got values from 0 to 256"),
    ],
)
def test_bad_views_are_refused(views, error, words):
    with pytest.raises(error, match=words):
        read_views(views, bound=1.0)


def test_other_cameras_than_the_ring():
    cameras = ring_cameras(1.0)[::2]
    assert read_views(shades(8), bound=1.0, cameras=cameras).cameras == cameras
    with pytest.raises(ValueError, match="views must be 8"):
        read_views(shades(16), bound=1.0, cameras=cameras)


def test_pairs_are_neighbors_in_one_view():
    size, cameras = 4, ring_cameras(1.0)[:2]
    color = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    color[..., 0] = torch.arange(2)[:, None, None]
    color[..., 1] = torch.arange(size)[:, None]
    color[..., 2] = torch.arange(size)
    views = GivenViews(color, torch.full((2, size, size), 255, dtype=torch.uint8), cameras)
    batch = views.sample_pairs(500, torch.Generator().manual_seed(0))
    here, there = (batch.color * 255).round().chunk(2)
    steps = (there - here).abs()
    assert (steps[:, 0] == 0).all() and (steps[:, 1:].sum(1) == 1).all()
    assert {tuple(step) for step in steps.tolist()} == {(0, 1, 0), (0, 0, 1)}
    directions = batch.rays.directions.chunk(2)
    assert (directions[0] * directions[1]).sum(-1).min() > 0.95, "rays of neighbors"
