"""benchmarks.geometry: what it compares by hand-worked numbers, and its references on real objects."""

import numpy as np
import pytest
import torch

from benchmarks import geometry
from benchmarks.text_to_3d import Prompt, choose_prompts
from hifa.toybox import world
from hifa.toybox.render import Picture


def flat(mask: np.ndarray, depth: float = 2.0) -> Picture:
    """A wall that faces the camera wherever there is a mask."""
    normals = np.zeros((*mask.shape, 3))
    normals[mask > 0, 0] = 1
    return Picture(np.zeros((*mask.shape, 3)), mask, depth * mask, normals)


def test_one_view_by_hand():
    truth = flat(np.array([[1.0, 1.0, 1.0, 0.0]]))
    opacity = np.array([[1.0, 0.6, 0.4, 0.7]])  # two of four agree, all but the first are hazy
    normals = np.array([[[1, 0, 0], [0.5, 3**0.5 / 2, 0], [1, 0, 0], [1, 0, 0]]], dtype=float)
    depth = np.array([[2.1, 1.7, 2.0, 2.0]])
    seen = geometry.compare(opacity, normals, depth, truth)
    assert seen == pytest.approx({"iou": 2 / 4, "normals": 30, "depth": 0.2, "haze": 3 / 4})
    nothing = geometry.compare(0 * opacity, normals, depth, truth)
    assert nothing == {"iou": 0, "normals": 90, "depth": 1, "haze": 0}


def test_pixels_without_a_normal_do_not_count():
    truth = flat(np.ones((1, 2)))
    normals = np.array([[[0, 0, 0], [0, 1, 0]]], dtype=float)
    assert geometry.compare(np.ones((1, 2)), normals, 2 * np.ones((1, 2)), truth)["normals"] == pytest.approx(90)


def test_the_true_object_agrees_with_itself_and_others_nearly():
    shape = world.make_scene("car", "blue").shape
    views = [geometry.true_view(shape, camera) for camera in geometry.CAMERAS[:4]]
    same = geometry.means([geometry.compare(v.mask, v.normals, v.depth, v) for v in views])
    assert same["iou"] == 1 and same["normals"] < 0.1 and same["depth"] == 0
    ceiling = geometry.measure_ceiling([Prompt("car", "blue", True)])
    assert 0.85 < ceiling["iou"] < 1 and 0 < ceiling["normals"] < 20 and 0 < ceiling["depth"] < 0.05


def test_settings_are_chosen_on_prompts_that_are_not_measured():
    assert not {(p.kind, p.color) for p in choose_prompts()} & set(geometry.TUNING)
    assert all(kind in world.KINDS and color in world.COLORS for kind, color in geometry.TUNING)


def test_true_views_come_from_all_sides():
    views = geometry.true_views(world.make_scene("duck", "red").shape, count=32)
    assert views.color.shape == (32, 96, 96, 3) and (views.color[:, 0, 0] == 255).all()
    azimuths = torch.tensor([camera.azimuth_deg for camera in views.cameras]).sort().values
    elevations = [camera.elevation_deg for camera in views.cameras]
    assert azimuths.diff().max() < 25 and min(elevations) < -8 and max(elevations) > 70
