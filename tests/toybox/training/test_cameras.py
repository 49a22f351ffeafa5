"""Training of the embedded prior on views with their cameras: data, groups of views, resuming, export."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from hifa import HiFAPipeline
from hifa.cameras import Camera, camera_to_world, pose_numbers
from hifa.toybox import world
from hifa.toybox.training import cameras, ring_dataset
from hifa.toybox.training.dataset import scene_of
from hifa.toybox.training.shards import load_shards, make_shards


SEED = 55


@pytest.fixture(scope="module")
def rings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rings")
    make_shards(folder, 3, ring_dataset.render_ring, SEED, workers=1)
    return folder


def test_views_of_a_ring_are_45_degrees_apart(rings):
    loaded = ring_dataset.load_rings(rings)
    assert loaded.pixels.shape == (3, 8, 64, 64, 3) and loaded.labels.shape == (3, 8, 5)
    azimuths = np.degrees(np.arctan2(loaded.poses[:, :, 7], loaded.poses[:, :, 3]))
    np.testing.assert_allclose(np.diff(azimuths, axis=1) % 360, 45, atol=1e-2)
    assert np.ptp(loaded.poses[:, :, 11], axis=1).max() < 1e-6  # one elevation
    corners = loaded.pixels[:, :, 0, 0]  # one background
    assert (np.ptp(corners, axis=1) <= 1).all()
    for labels, poses in zip(loaded.labels.reshape(-1, 5), loaded.poses.reshape(-1, 16), strict=True):
        azimuth, elevation = np.degrees(np.arctan2(poses[7], poses[3])), np.degrees(np.arcsin(poses[11]))
        assert world.VIEWS[labels[4]] == world.view_of(float(azimuth), float(elevation))
        assert scene_of(labels).kind in world.KINDS


def test_poses_are_those_of_the_pictures(rings):
    """The third view of a ring is rendered again from what its pose says."""
    loaded, rng = ring_dataset.load_rings(rings), np.random.default_rng(SEED)
    scene, (azimuth, elevation) = world.sample_scene(rng), ring_dataset.sample_camera(rng)
    camera = Camera(azimuth + 90, elevation, rng.uniform(*ring_dataset.RADIUS))
    np.testing.assert_allclose(loaded.poses[0, 2], pose_numbers(camera), atol=1e-5)
    background = ring_dataset.sample_background(rng)
    again = ring_dataset.render(scene.shape, camera_to_world(camera).numpy(), 64, 40.0, background).color
    assert np.abs(again * 255 - loaded.pixels[0, 2]).max() <= 1


def test_files_that_exist_are_kept(rings):
    (path,) = rings.glob("*.npz")
    before = path.stat().st_mtime_ns
    make_shards(rings, 3, ring_dataset.render_ring, SEED, workers=1)
    assert path.stat().st_mtime_ns == before


def test_no_data_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="No training data in .*python -m x"):
        load_shards(tmp_path, "python -m x")


def test_groups_are_90_degrees_apart(rings):
    loaded = ring_dataset.load_rings(rings)
    chosen, views = cameras.draw_groups(loaded, np.random.default_rng(0), 50)
    assert chosen.shape == (50,) and set(views[:, 0]) == {0, 1}
    azimuths = np.degrees(np.arctan2(loaded.poses[..., 7], loaded.poses[..., 3]))[chosen[:, None], views]
    np.testing.assert_allclose(np.diff(azimuths, axis=1) % 360, 90, atol=1e-2)


def train_in(folder: Path, rings: Path, *steps: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    (folder / "rings").symlink_to(rings)
    for last in steps:
        cameras.train(
            argparse.Namespace(
                output_dir=folder, export=folder / "prior", scenes=3, steps=last, objects=1, peak=1e-3, seed=1
            )
        )
    return load_file(folder / "cameras.safetensors")


def test_an_interrupted_training_ends_as_one_in_a_go(rings, tmp_path, monkeypatch):
    monkeypatch.setattr(cameras, "FIRST_SEED", SEED)
    straight = train_in(tmp_path / "straight", rings, 4)
    resumed = train_in(tmp_path / "resumed", rings, 2, 4)
    assert straight.keys() == resumed.keys()
    torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-6)
    moved = straight["module/camera_embedding.linear_2.weight"]
    assert moved.abs().max() > 0
    prior = tmp_path / "resumed/prior"
    pipe = HiFAPipeline.from_pretrained(prior)
    assert pipe.camera_embedding is not None and pipe.camera_embedding.linear_2.weight.abs().max() > 0
    run = pipe.start("a red car", seed=0, num_views=4, num_inference_steps=2, lambda_normal=0.0, render_size=16)
    assert len(list(pipe.advance(run))) == 2
    plain = StableDiffusionPipeline.from_pretrained(prior)
    plain.set_progress_bar_config(disable=True)
    assert plain("a red car", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
