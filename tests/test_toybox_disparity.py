"""The Toybox disparity model: its training resumes, and the embedded one sees what is near."""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import DPTForDepthEstimation, DPTImageProcessor

from hifa.cameras import Camera
from hifa.losses import disparity_loss
from hifa.toybox import train_disparity, world
from hifa.toybox.multiview_dataset import look


WEIGHTS = Path(train_disparity.__file__).parent / "disparity_weights"


@pytest.fixture(scope="module")
def model() -> DPTForDepthEstimation:
    return DPTForDepthEstimation.from_pretrained(WEIGHTS).eval()


def disparity_in(model: DPTForDepthEstimation, colour: np.ndarray) -> torch.Tensor:
    """`(64, 64)` of a picture in [0, 1], through the saved processor."""
    picture = PIL.Image.fromarray((colour * 255).round().astype(np.uint8))
    pixels = DPTImageProcessor.from_pretrained(WEIGHTS)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixels).predicted_depth[0]


def test_disparity_by_hand():
    # The ball that all scenes fit in spans 1.7 to 3.3 from a camera at 2.5.
    depth, mask = np.array([[1.7, 3.3, 2.2, 0.0]]), np.array([[1.0, 1.0, 0.5, 0.0]])
    expected = [1, 0, 0.5 * (1 / 2.2 - 1 / 3.3) / (1 / 1.7 - 1 / 3.3), 0]
    np.testing.assert_allclose(train_disparity.disparity_of(depth, mask, 2.5), [expected], atol=1e-6)


def test_batches_have_the_true_mask_and_new_backgrounds():
    reliefs = train_disparity.render_relief(0, views=2)
    pixels, disparity, mask = train_disparity.draw_batch(reliefs, np.random.default_rng(0), 40)
    assert pixels.shape == (40, 3, 64, 64) and pixels.abs().max() <= 1
    assert disparity.shape == mask.shape == (40, 64, 64)
    assert (disparity[mask == 0] == 0).all() and disparity[mask == 1].min() > 0 and disparity.max() <= 1
    corners = pixels[:, :, :4, :4].mean((1, 2, 3)) / 2 + 0.5
    assert corners.min() < 0.6 < 0.9 < corners.max(), "gray and white ones"


def test_an_interrupted_training_ends_as_one_in_a_go(tmp_path):
    def train_to(folder: Path, *steps: int) -> dict[str, torch.Tensor]:
        for last in steps:
            train_disparity.train(
                argparse.Namespace(
                    output_dir=folder,
                    export=folder / "model",
                    scenes=2,
                    views=2,
                    steps=last,
                    batch=2,
                    peak=1e-3,
                    seed=0,
                )
            )
        return load_file(folder / "disparity.safetensors")

    straight, resumed = train_to(tmp_path / "a", 3), train_to(tmp_path / "b", 1, 3)
    assert straight.keys() == resumed.keys()
    torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-6)
    exported = DPTForDepthEstimation.from_pretrained(tmp_path / "b/model")
    assert disparity_in(exported.eval(), np.zeros((80, 80, 3))).shape == (64, 64)


@pytest.mark.parametrize("background", [0.45, 1.0])
def test_the_embedded_model_ranks_near_before_far(model, background):
    correlations = []
    for index, kind in enumerate(("car", "teddy bear", "table", "donut")):
        camera = Camera(70.0 * index + 20, 35.0)
        picture = look(world.make_scene(kind, "green").shape, camera)
        colour = picture.colour - (1 - background) * (1 - picture.mask[..., None])  # from white
        seen, inside = disparity_in(model, colour.clip(0, 1)), torch.from_numpy(picture.mask) > 0.99
        truth = 1 / torch.from_numpy(picture.depth).clamp(min=0.1)
        correlations.append(1 - float(disparity_loss(seen.flatten(), truth.flatten(), inside.flatten())))
        assert seen[inside].mean() > seen[torch.from_numpy(picture.mask) == 0].mean() + 0.2, kind
        near, far = truth[inside].quantile(0.9), truth[inside].quantile(0.1)
        assert seen[inside & (truth > near)].mean() > seen[inside & (truth < far)].mean() + 0.05, kind
    assert np.mean(correlations) > 0.8, correlations
