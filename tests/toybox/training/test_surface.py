"""The Toybox surface model: its pictures are true, its training resumes, and the embedded one sees what is near."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hifa import HiFAPipeline
from hifa.cameras import Camera
from hifa.losses import disparity_loss
from hifa.priors.surface import load_embedded
from hifa.priors.surface_unet import SurfaceUNet
from hifa.toybox import world
from hifa.toybox.training import surface, surface_dataset
from hifa.toybox.training.multiview_dataset import look


@pytest.fixture(scope="module")
def renders() -> surface_dataset.Surfaces:
    return surface_dataset.Surfaces.joined([surface_dataset.render_surfaces(seed, 4) for seed in range(4)])


def test_disparity_by_hand():
    # The ball that all scenes fit in spans 1.7 to 3.3 from a camera at 2.5.
    depth, mask = np.array([[1.7, 3.3, 2.2, 0.0]]), np.array([[1.0, 1.0, 0.5, 0.0]])
    expected = [1, 0, 0.5 * (1 / 2.2 - 1 / 3.3) / (1 / 1.7 - 1 / 3.3), 0]
    np.testing.assert_allclose(surface_dataset.disparity_of(depth, mask, 2.5), [expected], atol=1e-6)


def test_normals_of_renders_are_unit_and_face_the_camera(renders):
    normals, inside = renders.normals / 127, renders.mask == 255
    np.testing.assert_allclose(np.linalg.norm(normals[inside], axis=-1), 1, atol=0.02)
    assert (normals[inside][:, 2] < 0.3).all() and normals[inside][:, 2].mean() < -0.5
    assert (renders.color[renders.mask == 0] == 0).all() and (renders.disparity[renders.mask == 0] == 0).all()


def test_batches_have_the_true_mask_new_backgrounds_and_mirrored_normals(renders):
    batch = surface.draw_batch(renders, None, np.random.default_rng(0), 64)
    pictures, timesteps, normals, disparity, mask = batch
    assert pictures.shape == (64, 3, 64, 64) and 0 <= pictures.min() and pictures.max() <= 1
    assert (timesteps == 0).all() and disparity.shape == mask.shape == (64, 64, 64)
    assert (disparity[mask == 0] == 0).all() and disparity[mask == 1].min() > 0
    corners = pictures[:, :, :4, :4].mean((1, 2, 3))
    assert corners.min() < 0.6 < 0.9 < corners.max(), "gray and white ones"
    known = {row.tobytes() for row in renders.mask}
    flipped = [(255 * row).round().byte().flip(-1).numpy().tobytes() in known for row in mask]
    assert 0 < sum(flipped) < 64
    # On an object the left of what is seen faces left, mirrored or not.
    columns = torch.linspace(-1, 1, 64)
    for row in range(64):
        inside = mask[row] > 0.5
        across = columns.expand(64, 64)[inside]
        assert (normals[row, 0][inside] * (across - across.mean())).mean() > 0


def test_blur_keeps_the_mean_and_zero_is_none():
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = surface.blurred(picture, torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(blurred[0], picture[0])
    assert blurred[1].std() < 0.4 * picture[1].std() and blurred[1].mean().item() == pytest.approx(0.5, abs=0.02)


def test_estimates_are_round_trips_at_zero_and_follow_the_caption_later(renders):
    pipe = HiFAPipeline.from_pretrained()
    rng, rows = np.random.default_rng(0), np.arange(0, 16, 4)
    x, prompts = surface_dataset.on_gray(renders, rows, rng), surface_dataset.captions(renders, rows)
    errors = [
        (surface_dataset.estimate_once(pipe, x, prompts, np.full(4, t, np.int16), rng) - x).abs().mean().item()
        for t in (0, 200, 900)
    ]
    assert errors[0] < 0.03 and errors[0] < errors[1] < errors[2]


def test_an_interrupted_training_ends_as_one_in_a_go(tmp_path):
    def train_to(folder: Path, *steps: int) -> dict[str, torch.Tensor]:
        for last in steps:
            surface.train(
                argparse.Namespace(
                    output_dir=folder,
                    export=folder / "model",
                    scenes=2,
                    views=2,
                    estimates=4,
                    steps=last,
                    batch=4,
                    peak=1e-3,
                    seed=0,
                    test_scenes=2,
                )
            )
        return load_file(folder / "surface.safetensors")

    straight, resumed = train_to(tmp_path / "a", 3), train_to(tmp_path / "b", 1, 3)
    assert straight.keys() == resumed.keys()
    torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-6)
    assert SurfaceUNet.from_pretrained(tmp_path / "b/model").config.sample_size == 64
    stored = load_file(tmp_path / "b/model/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("background", [0.45, 1.0])
def test_the_embedded_model_ranks_near_before_far(background):
    correlations, model = {}, load_embedded()
    for index, kind in enumerate(world.KINDS):
        picture = look(world.make_scene(kind, "green").shape, Camera(70.0 * index + 20, 35.0))
        color = (picture.color - (1 - background) * (1 - picture.mask[..., None])).clip(0, 1)  # from white
        x = torch.from_numpy(color).permute(2, 0, 1)[None]
        seen, inside = model.estimate(x, 64).disparity, torch.from_numpy(picture.mask) > 0.5
        truth = 1 / torch.from_numpy(picture.depth).clamp(min=0.1)
        correlations[kind] = 1 - float(disparity_loss(seen.flatten(), truth.flatten(), inside.flatten()))
        assert seen[inside].mean() > seen[torch.from_numpy(picture.mask) == 0].mean() + 0.2, kind
    assert np.mean(list(correlations.values())) > 0.72, correlations
