"""`benchmarks.sheets` and `benchmarks.hallucination`: their arithmetic by hand, and both on a tiny scale."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks import hallucination, sheets
from benchmarks.image_to_3d import render
from benchmarks.judge import COLORS, KINDS, Verdict
from hifa import HiFAAsset, HiFAConfig, HiFAPipeline
from hifa.multiview.given_views import read_views, ring_cameras
from hifa.toybox import world
from tests.helpers.runs import TINY
from tests.helpers.views import shades


SMALL = {
    "given_rays": 64, "n_coarse": 8, "n_fine": 6, "density_grid": 8, "levels": 2, "log2_hashmap_size": 6,
    "max_resolution": 16, "hidden_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return hallucination.choose_tasks()[0]


@pytest.fixture
def folder(tmp_path):
    read_views(shades(), 1.0).sheet().save(tmp_path / "discs.png")
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "discs_input.png")
    return tmp_path


def test_every_fourth_view_is_held_out_with_its_own_camera(folder):
    assert sheets.find_sheets(folder) == [folder / "discs.png"], "the other picture is no sheet"
    given, held_out = sheets.split(PIL.Image.open(folder / "discs.png"), 1.0, 32)
    assert [view[16, 16, 0].item() for view in held_out.color] == [20, 60, 100, 140]
    assert held_out.cameras == ring_cameras(1.0)[2::4]
    assert len(given) == 12 and not set(given.cameras) & set(held_out.cameras)


def test_a_folder_without_sheets_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no PNG of 16 square views"):
        sheets.find_sheets(tmp_path)


def test_a_sheet_is_measured_and_pictured(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    result = sheets.measure(folder / "discs.png", out, 16, {"num_inference_steps": 3, **SMALL})
    assert {"psnr", "given_psnr", "seconds"} == set(result) and 0 < result["psnr"] < 40
    picture = np.asarray(PIL.Image.open(out / "discs.png"))
    assert picture.shape == (3 * 16, 4 * 16, 3)
    ours, theirs, difference = picture.reshape(3, 16, 64, 3).astype(int)
    assert abs(np.minimum(255, 4 * abs(ours - theirs)) - difference).max() <= 8


def test_a_pixel_of_a_render_is_the_mean_of_its_area(analytic_field):
    """A wall that covers a quarter of each pixel's area at most looks gray, not black or white."""
    field = analytic_field(lambda points: 500.0 * (points[:, 1] > 0.0), (0.0, 0.0, 0.0))
    views = read_views(shades(size=9), 1.0)
    image = render(HiFAAsset(field), views)[0]
    assert ((image > 0.2) & (image < 0.8)).any(), "the edge runs through the middle of a pixel"


def test_tasks_are_of_different_kinds_and_ask_for_another_color():
    tasks = hallucination.choose_tasks()
    assert len({task.kind for task in tasks}) == len({task.wanted for task in tasks}) == hallucination.COUNT
    assert all(task.color != task.wanted for task in tasks)
    assert tasks[0].wanted in tasks[0].prompt and tasks[0].color not in tasks[0].prompt


def test_true_views_show_the_object_at_the_scale_of_the_field(task):
    """The widest silhouette is as wide as the object is by its own mask from the front."""
    views = hallucination.true_views(task, 1.0, 64)
    assert len(views) == 16 and views.cameras == ring_cameras(1.0)
    assert all(0.03 < (mask > 127).float().mean() < 0.6 for mask in views.mask)
    outside = views.color[views.mask == 0]
    assert (outside == 255).all(), "on white"


def test_the_silhouette_of_the_object_itself(task, analytic_field):
    class Exact(HiFAAsset):
        def render(self, camera, size):
            pose = hallucination.orbit_pose(camera.azimuth_deg, camera.elevation_deg, camera.radius)
            mask = hallucination.render(task.scene.shape, pose, size, camera.fov_deg).mask
            return type("Seen", (), {"opacity": torch.from_numpy(mask)})

    metadata = {"config": HiFAConfig.guided().to_dict()}
    assert hallucination.silhouette_iou(Exact(analytic_field(lambda p: p[:, 0]), metadata), task) == 1.0
    empty = HiFAAsset(analytic_field(lambda points: 0 * points[:, 0]), metadata)
    assert hallucination.silhouette_iou(empty, task) == 0.0


def test_shares_by_hand(task):
    kind, wanted, old = KINDS.index(task.kind), COLORS.index(task.wanted), COLORS.index(task.color)
    other = (kind + 1) % len(KINDS)
    verdict = Verdict(
        torch.tensor([kind] * 6 + [other] * 2), torch.tensor([wanted] * 3 + [old] * 5), torch.zeros(8, dtype=torch.int)
    )
    row = hallucination.task_row(task, verdict, 0.5, 1.0)
    assert (row["kind"], row["color"], row["kind_and_color"], row["old_color"]) == (0.75, 0.375, 0.375, 0.625)


def test_a_photo_is_on_white_and_of_the_picture(task):
    photo = np.asarray(hallucination.photo_of(task))
    assert photo.shape == (256, 256, 3) and (photo[0, 0] == 255).all()
    assert 0.02 < (photo.min(-1) < 240).mean() < 0.6


def test_an_asset_and_its_row_in_the_sheet(task, tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    config = replace(TINY, given_rays=32, given_size=16, image_guidance_end=0.4)
    asset, views = hallucination.make_asset(pipe, task, config, true=True)
    assert asset.prompt == task.prompt and views.size == 16
    strip = hallucination.strip_of(asset, views, 24)
    assert strip.shape == (24, 9 * 24, 3)
    verdict = Verdict(*(torch.zeros(8, dtype=torch.int64) for _ in range(3)))
    rows = [hallucination.task_row(task, verdict, 0.5, 1.0)] * 2
    assert hallucination.contact_sheet(rows, [strip] * 2, 24).size == (190 + 9 * 24, 48)
    assert task.kind in world.KINDS
