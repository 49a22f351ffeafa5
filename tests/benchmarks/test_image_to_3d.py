"""The arithmetic of `benchmarks.image_to_3d`, by hand, and its truth against itself."""

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import KDTree

from benchmarks import image_to_3d
from hifa import HiFAConfig
from hifa.multiview.given_views import read_views
from hifa.optimization import reconstruction
from hifa.rendering.image import backpropagate
from tests.helpers.views import shades


@pytest.fixture(scope="module")
def mesh():
    return image_to_3d.true_mesh()


def test_scores_by_hand():
    truth = np.full((2, 16, 16, 3), 0.5)
    assert image_to_3d.scores(truth + 0.1, truth)["psnr"] == 20.0
    halves = truth + np.array([0.1, 0.01])[:, None, None, None]
    assert image_to_3d.scores(halves, truth)["psnr"] == 30.0, "the mean over views of 20 and 40 dB"


def test_the_views_are_worth_what_the_notes_say():
    """25.4 dB and 0.885 for SyncDreamer's views: the measure is the one that the goals are given in."""
    views, truth = (read_views(image_to_3d.load_pictures(kind), 1.0) for kind in ("syncdreamer", "truth"))
    scores = image_to_3d.scores(image_to_3d.as_array(views)[::5], image_to_3d.as_array(truth)[::5])
    assert scores["psnr"] == pytest.approx(25.4, abs=1.5) and scores["ssim"] == pytest.approx(0.885, abs=0.015)


def test_chamfer_by_hand():
    first, second = np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 0]])
    assert image_to_3d.chamfer_distance(first, second) == pytest.approx((0.5 + 0) / 2)


def test_thinning_takes_the_mean_of_each_cell():
    points = np.array([[0.001, 0, 0], [0.003, 0, 0], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(image_to_3d.thinned(points), [[0.002, 0, 0], [0.5, 0.5, 0.5]])


def test_occupancy_of_a_ball():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.4)
    inside = image_to_3d.occupancy(image_to_3d.surface_points(ball))
    assert inside.shape == (64, 64, 64)
    assert inside.mean() == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.05)


def test_the_mesh_is_where_the_cameras_see_it(mesh):
    """A quarter turn or half a pixel off, and these would be several times as far apart."""
    seen = image_to_3d.true_points()[::100]
    surface = image_to_3d.surface_points(mesh, 200_000)
    assert KDTree(surface).query(seen)[0].mean() < 0.003
    np.testing.assert_allclose(mesh.bounds[:, 2], [-0.5, 0.5], atol=1e-6)


def test_depth_of_points_is_the_published_depth(mesh):
    depth = image_to_3d.depths_of(image_to_3d.surface_points(mesh, 200_000), size=64)[0]
    points = image_to_3d.points_of_depth([depth] * 16)[: np.isfinite(depth).sum()]
    tree = KDTree(image_to_3d.true_points()[: 256 * 256])
    assert np.median(tree.query(points)[0]) < 0.01


def test_reconstruction_is_timed_beside_bare_rendering():
    views = read_views(shades(), 1.0)
    config = HiFAConfig.reconstruction(
        num_inference_steps=10, given_rays=64, n_coarse=8, n_fine=6, density_grid=8, levels=2, log2_hashmap_size=6,
        max_resolution=16, hidden_dim=8,
    )  # fmt: skip
    run, seconds, bare = image_to_3d.reconstruct(views, config, clock_rendering=True)
    assert run.finished and 0 < bare and 0 < seconds
    times = image_to_3d.times(seconds, bare)
    assert times["ratio"] == pytest.approx(seconds / bare, abs=0.01) and set(times) == {
        "seconds", "render_seconds", "ratio"
    }  # fmt: skip


@pytest.mark.parametrize("preset", [HiFAConfig.reconstruction, HiFAConfig.hallucinated])
def test_the_rays_of_a_step_are_the_ones_that_are_timed(monkeypatch, preset):
    """Before the step or after it, with its offsets and neighbors."""
    config = preset(
        num_inference_steps=20, given_rays=16, n_coarse=8, n_fine=6, density_grid=8, levels=2, log2_hashmap_size=6,
        max_resolution=16, hidden_dim=8,
    )  # fmt: skip
    drawn = []

    def watched(field, rays, *rest, offsets=None, **options):
        drawn.append((rays.directions, offsets))
        return backpropagate(field, rays, *rest, offsets=offsets, **options)

    monkeypatch.setattr(image_to_3d, "backpropagate", watched)
    monkeypatch.setattr(reconstruction, "backpropagate", watched)
    image_to_3d.reconstruct(read_views(shades(), 1.0), config, clock_rendering=True)
    assert len(drawn) == 20 + 2
    for first in (5, 16):  # before step 5, and after step 15, which is the seventeenth batch
        assert all(torch.equal(one, other) for one, other in zip(drawn[first], drawn[first + 1], strict=True))
