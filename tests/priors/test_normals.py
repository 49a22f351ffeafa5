"""Models of normals: the embedded one on the world's own renders, and Marigold with tiny random parts."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MarigoldNormalsPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hifa import HiFAConfig, HiFAPipeline
from hifa.cameras import Camera, camera_to_world
from hifa.optimization.surface_guidance import normal_guidance
from hifa.priors.normals import MarigoldNormalPrior
from hifa.priors.surface import load_embedded
from hifa.toybox import world
from hifa.toybox.models import build_tokenizer
from hifa.toybox.render import render
from tests.helpers.runs import TINY, finish, generator
from tests.helpers.surfaces import SIZE, in_camera_axes, sphere


@pytest.fixture(scope="module")
def embedded():
    return load_embedded()


@pytest.fixture(scope="module")
def marigold(tmp_path_factory):
    """Folder of a random Marigold of 32x32 pixels."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=1, eos_token_id=2, pad_token_id=2,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=8, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=8,
            norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            sample_size=32, latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        )  # fmt: skip
    pipeline = MarigoldNormalsPipeline(
        unet, vae, DDIMScheduler(prediction_type="v_prediction"), text_encoder, tokenizer, prediction_type="normals",
        default_denoising_steps=4, default_processing_resolution=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-marigold")
    pipeline.save_pretrained(folder)
    return folder


def mean_angle(ours: torch.Tensor, true: torch.Tensor, inside: torch.Tensor) -> float:
    return torch.rad2deg(torch.acos((ours * true).sum(-1).clamp(-1, 1)))[inside].mean().item()


def picture_of(kind: str, color: str, camera: Camera, size: int = 64, seed: int = 5):
    """A render of the world `(1, 3, n, n)` on gray, its normals in camera axes and its mask."""
    shape = world.make_scene(kind, color, np.random.default_rng(seed)).shape
    pose = camera_to_world(camera).numpy()
    seen = render(shape, pose, size, camera.fov_deg, (0.4, 0.45, 0.4))
    normals = torch.from_numpy(seen.normals @ pose[:, :3])
    return torch.from_numpy(seen.color).permute(2, 0, 1)[None], normals, torch.from_numpy(seen.mask > 0.5)


@pytest.mark.parametrize("kind,color", [("teddy bear", "brown"), ("car", "blue"), ("mug", "white")])
def test_the_embedded_model_sees_the_normals_of_the_world(embedded, kind, color):
    picture, normals, inside = picture_of(kind, color, Camera(35, 25))
    estimate = embedded.estimate(picture, 64)
    assert mean_angle(estimate.normals, normals, inside) < 25
    flat = torch.tensor([0.0, 0, -1]).expand_as(normals)
    assert mean_angle(estimate.normals, normals, inside) < 0.75 * mean_angle(flat, normals, inside)


def test_the_embedded_model_doubts_the_background_and_what_is_noise(embedded):
    picture, _, inside = picture_of("teddy bear", "brown", Camera(35, 25))
    confidence = embedded.estimate(picture, 64).confidence
    assert confidence[inside].mean() > 0.35 and confidence[inside].mean() > 8 * confidence[~inside].mean()
    noisy = (picture + 0.5 * torch.randn(picture.shape, generator=generator())).clamp(0, 1)
    assert embedded.estimate(noisy, 64).confidence[inside].mean() < confidence[inside].mean()


def test_the_embedded_model_answers_at_the_size_of_the_view(embedded):
    picture, normals, inside = picture_of("teddy bear", "brown", Camera(35, 25), size=128)
    estimate = embedded.estimate(picture, 128)
    assert estimate.normals.shape == (128, 128, 3)
    assert estimate.confidence.shape == estimate.disparity.shape == (128, 128)
    torch.testing.assert_close(estimate.normals.norm(dim=-1), torch.ones(128, 128))
    assert mean_angle(estimate.normals, normals, inside) < 25
    small = embedded.estimate(picture, 32)
    assert small.normals.shape == (32, 32, 3) and 0 <= small.confidence.min() and small.confidence.max() <= 1


def test_marigold_runs_one_step_and_is_the_same_every_time(marigold):
    prior = MarigoldNormalPrior.from_pretrained(marigold)
    picture = torch.rand(1, 3, 64, 64, generator=generator())
    first, second = prior.estimate(picture, 24), prior.estimate(picture, 24)
    assert first.normals.shape == (24, 24, 3) and torch.equal(first.normals, second.normals)
    assert (first.confidence == 1).all() and first.disparity is None


def test_marigolds_axes_on_a_rendered_sphere(marigold, monkeypatch):
    """Marigold documents x right, y up, z towards the observer. A ball has its normal towards the right on the right,
    upwards above, and towards the observer in the middle.
    """
    prior = MarigoldNormalPrior.from_pretrained(marigold)
    view, normals = sphere()
    inside = normals.norm(dim=-1) > 0.5
    rows, columns = torch.meshgrid(torch.linspace(1, -1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    theirs = in_camera_axes(normals) * torch.tensor([1.0, -1.0, -1.0])
    assert (theirs[..., 0] * columns)[inside].mean() > 0.1 and (theirs[..., 1] * rows)[inside].mean() > 0.1
    assert theirs[SIZE // 2, SIZE // 2, 2] > 0.9
    # What the decoder would have to say for it, in place of a trained one.
    decoded = torch.nn.functional.interpolate(theirs.permute(2, 0, 1)[None], (32, 32), mode="area")
    monkeypatch.setattr(prior.pipeline, "decode_prediction", lambda latent: torch.nn.functional.normalize(decoded))
    estimate = prior.estimate(view.picture, SIZE)
    loss = normal_guidance(view, estimate)
    flipped = [
        normal_guidance(view, type(estimate)(estimate.normals * torch.tensor(axes), estimate.confidence))
        for axes in ([-1.0, 1, 1], [1.0, -1, 1], [1.0, 1, -1])
    ]
    assert loss < 0.02 * inside.float().mean() and min(flipped) > 10 * loss


def test_a_published_prior_is_guided_once_a_model_of_normals_is_loaded(tiny_prior, marigold):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.default_config().lambda_normal == 0
    pipe.load_normal_model(marigold)
    assert pipe.default_config().lambda_normal > 0
    run = finish(pipe, pipe.start("a red ball", config=TINY, generator=generator(), lambda_normal=1.0, n_fine=8))
    assert all(losses["normal"] >= 0 for losses in run.losses)


def test_another_kind_of_model_is_refused_by_name(tiny_prior):
    pipe = HiFAPipeline.from_pretrained(tiny_prior)
    with pytest.raises(ValueError, match="is not a Marigold normals model"):
        pipe.load_normal_model(tiny_prior)


def test_the_papers_losses_have_no_normals():
    assert HiFAConfig.paper().lambda_normal == HiFAConfig.official().lambda_normal == 0
    assert HiFAConfig.paper().lambda_curvature == HiFAConfig.official().lambda_curvature == 0
