"""Runs with several views a step: the loss against the public MVDream, gradients, resuming, and what is refused."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hifa import HiFAConfig, HiFAPipeline, HiFARun
from hifa.cameras import Camera, Rays, camera_to_world, image_rays, ring
from hifa.losses import sds_plus_loss
from hifa.multiview.mvdream import build_models, build_scheduler
from hifa.optimization.initialization import front_camera
from hifa.optimization.step import draw_camera, surface_terms
from hifa.optimization.surface_guidance import SurfaceModels, whole_views
from hifa.priors.denoising import to_sample
from hifa.priors.multiview_diffusion import MultiviewDiffusionPrior, rescaled_noise
from hifa.priors.prompt_embeddings import PromptEmbeddings
from hifa.priors.prompt_guidance import by_cameras, classifier_free
from hifa.priors.surface import SurfaceEstimate, SurfacePrior
from hifa.priors.view_attention import across_views
from hifa.rendering.rays import render_rays
from hifa.schedule import narrowing_bounds
from tests.helpers.mvdream import GOLDEN, TINY, rnd, small_config


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(3)
    tokenizer = HiFAPipeline.from_pretrained().tokenizer
    return HiFAPipeline(**build_models(TINY), scheduler=build_scheduler(), tokenizer=tokenizer)


@pytest.mark.parametrize(
    "scale, rescale, t", [(50, 0.5, 481), (50, 0.5, 900), (50, 0, 481), (50, 1, 481), (7.5, 0.5, 20)]
)
def test_loss_of_the_public_code(scale, rescale, t):
    z, answers = rnd(6, 8, 4, 8, 8), rnd(5, 16, 4, 8, 8)
    alpha_cumprod = float(build_scheduler().alphas_cumprod[t])
    noise = torch.from_numpy(GOLDEN["sds_noise"])
    guidance = by_cameras(PromptEmbeddings(torch.zeros(6, 77, 64)), ring(Camera(0, 15), 4), scale, rescale)
    z = z.requires_grad_()
    loss = 0
    for group in (slice(0, 4), slice(4, 8)):
        z_t = alpha_cumprod**0.5 * z[group] + (1 - alpha_cumprod) ** 0.5 * noise[group]
        joint = z_t.detach().reshape(1, 16, 8, 8)
        outputs = torch.stack([answers[8:][group], answers[:8][group]]).reshape(2, 16, 8, 8)
        epsilon = rescaled_noise(guidance.combine(outputs), outputs[1:], joint, alpha_cumprod, rescale)
        z_hat = to_sample(epsilon, joint, alpha_cumprod).view(4, 4, 8, 8)
        # Half of the views in each group, and the mean is over all.
        loss = loss + sds_plus_loss(z[group], z_hat, z, None, weight=1, lambda_latent=1, lambda_rgb=0) / 8
    loss.backward()
    name = f"sds_w{scale:g}_r{str(rescale).replace('.', '')}_t{t}".replace("w7.5", "w7")
    np.testing.assert_allclose(loss.detach(), GOLDEN[f"{name}_loss"], rtol=1e-4)
    np.testing.assert_allclose(z.grad, GOLDEN[f"{name}_grad"], atol=1e-4 * np.abs(GOLDEN[f"{name}_grad"]).max())


@torch.no_grad()
def test_noise_is_that_of_the_unet_asked_twice(pipe):
    prior = pipe.make_prior()
    assert isinstance(prior, MultiviewDiffusionPrior)
    tokens, cameras, z_t = rnd(1, 6, 10, 32), ring(Camera(30, 10), 3), rnd(2, 3, 4, 8, 8)
    embeddings = PromptEmbeddings(tokens)
    guidance = by_cameras(embeddings, cameras, 7.0, 0.0)
    negative, positive = (ask(pipe, z_t, tokens[row], guidance.poses) for row in (0, 1))
    expected = negative + 7 * (positive - negative)
    torch.testing.assert_close(prior.predict_noise(z_t, 400, guidance), expected, atol=1e-4, rtol=1e-4)
    alone = prior.predict_noise(z_t, 400, by_cameras(embeddings, cameras, 1.0, 0.5))
    torch.testing.assert_close(alone, positive, atol=1e-5, rtol=1e-5)


def ask(pipe, z_t, embed, poses):
    with across_views(pipe.unet, pipe.camera_embedding, len(z_t)):
        text = embed.expand(len(z_t), -1, -1)
        return pipe.unet(z_t, 400, encoder_hidden_states=text, class_labels=poses)[0]


@torch.no_grad()
def test_views_know_of_each_other_and_of_their_cameras(pipe):
    prior, embeddings, z_t = pipe.make_prior(), PromptEmbeddings(rnd(1, 6, 10, 32)), rnd(2, 4, 4, 8, 8)
    seen = prior.predict_noise(z_t, 400, by_cameras(embeddings, ring(Camera(0, 10), 4), 1.0, 0.0))
    other = z_t.clone()
    other[3] += 1
    changed = prior.predict_noise(other, 400, by_cameras(embeddings, ring(Camera(0, 10), 4), 1.0, 0.0))
    assert (changed - seen)[0].abs().max() > 1e-5
    turned = prior.predict_noise(z_t, 400, by_cameras(embeddings, ring(Camera(45, 10), 4), 1.0, 0.0))
    assert (turned - seen).abs().max() > 1e-4


@torch.no_grad()
def test_words_ask_the_2d_model(pipe):
    prior, embeddings, z_t = pipe.make_prior(), PromptEmbeddings(rnd(1, 6, 10, 32)), rnd(2, 1, 4, 8, 8)
    expected = pipe.unet(z_t, 400, encoder_hidden_states=embeddings.tokens[[3]])[0]
    torch.testing.assert_close(prior.predict_noise(z_t, 400, classifier_free(embeddings, 1, 1.0, 1.0, 0.0)), expected)


@torch.no_grad()
def test_half_precision(pipe):
    half = copy.deepcopy(pipe.unet).bfloat16()
    prior = MultiviewDiffusionPrior(pipe.vae, half, pipe.scheduler, copy.deepcopy(pipe.camera_embedding).bfloat16())
    guidance = by_cameras(PromptEmbeddings(rnd(1, 6, 10, 32)), ring(Camera(0, 10), 4), 5.0, 0.5)
    noise = prior.predict_noise(rnd(2, 4, 4, 8, 8), 400, guidance)
    assert noise.dtype == torch.float32 and noise.isfinite().all()


def gradients(pipe, **changes) -> dict[str, torch.Tensor]:
    run = pipe.start("a red chair", seed=0, config=small_config(), **changes)
    seen = {}

    def step(*args, **kwargs):
        seen.update({name: p.grad.clone() for name, p in run.radiance_field.named_parameters() if p.grad is not None})

    run.optimizer.step = step
    next(pipe.advance(run))
    return seen


def test_gradients_do_not_depend_on_the_chunk(pipe):
    # Without guidance, which would amplify the rounding of the render.
    whole, parts = (gradients(pipe, rays_per_chunk=chunk, guidance_scale=1.0) for chunk in (2**14, 100))
    assert whole.keys() == parts.keys() and len(whole) > 2
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=5e-4 * gradient.abs().max().item(), rtol=1e-3)


def test_weight_does_not_grow_with_the_number_of_views(pipe):
    losses = {}
    for views in (1, 4):
        run = pipe.start("a red chair", seed=0, config=small_config(), num_views=views, guidance_scale=1.0)
        losses[views] = next(pipe.advance(run)).losses["sds"]
    assert 0.5 < losses[4] / losses[1] < 2


def test_first_by_cameras_and_then_by_words(pipe):
    config = HiFAConfig.multiview_preview(num_inference_steps=10, num_views_end=0.3)
    assert [config.num_views_at(step) for step in range(5)] == [4, 4, 4, 0, 0]
    run = pipe.start("a red chair", seed=0, config=small_config(), num_views_end=0.4)
    assert run.config.num_views_at(1) == 4 and run.config.num_views_at(2) == 0
    assert len(list(pipe.advance(run))) == 3


def test_a_saved_run_continues_bit_for_bit(pipe, tmp_path):
    straight = pipe.start("a red chair", seed=5, config=small_config())
    list(pipe.advance(straight))
    first = pipe.start("a red chair", seed=5, config=small_config())
    list(pipe.advance(first, steps=1))
    first.save(tmp_path)
    second = HiFARun.load(tmp_path)
    list(pipe.advance(second))
    expected, got = straight.radiance_field.state_dict(), second.radiance_field.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_cameras_frame_the_object_whatever_their_field_of_view(pipe):
    run = pipe.start("a red chair", seed=0, config=small_config())
    for _ in range(100):
        camera = draw_camera(run)
        half_height = camera.radius * math.tan(math.radians(camera.fov_deg / 2))
        assert 0.8 <= half_height <= 1.0 and 15 <= camera.fov_deg <= 60 and 0 <= camera.elevation_deg <= 30
    shown = front_camera(run.config)
    assert shown.radius * math.tan(math.radians(shown.fov_deg / 2)) == pytest.approx(0.9)


def test_bounds_of_the_timesteps_are_those_of_the_public_code():
    for step, expected in zip(GOLDEN["t_steps"], GOLDEN["t_bounds"], strict=True):
        bounds = narrowing_bounds(int(step), 10_000, 980, 20)
        assert np.abs(np.subtract(bounds, expected)).max() <= 1  # the public code rounds other products


def test_what_cannot_be_combined_is_refused(pipe, tiny_prior):
    single = HiFAPipeline.from_pretrained(tiny_prior)
    with pytest.raises(ValueError, match="num_views=4 needs a multi-view prior"):
        single.start("a red chair", num_views=4)
    with pytest.raises(ValueError, match="num_views=4 and distillation='vsd'"):
        HiFAConfig.multiview_preview(distillation="vsd")
    with pytest.raises(ValueError, match=r"camera_framing=\(0.5, 1.0\) puts cameras 0.87 from the origin"):
        HiFAConfig.multiview_preview(camera_framing=(0.5, 1.0))


def test_normals_guide_several_views(pipe):
    """The normals of each view are compared with those of its own estimate."""

    class ColorsAreNormals(SurfacePrior):
        def estimate(self, picture, size, timestep=0):
            normals = torch.nn.functional.normalize(picture[0].movedim(0, -1) - 0.5, dim=-1)
            return SurfaceEstimate(normals, torch.ones(size, size))

    prior = ColorsAreNormals()
    run = pipe.start("a red chair", seed=0, config=small_config())
    config = replace(run.config, lambda_normal=1.0, regularizer_warmup=0.0)
    cameras, size = ring(Camera(10, 20), 2), 16
    parts = [image_rays(camera_to_world(camera), camera.fov_deg, size) for camera in cameras]
    seen = render_rays(run.radiance_field, Rays.joined(parts), run.sampling, torch.zeros(3))
    estimates = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    run.config = config
    both = surface_terms(run, SurfaceModels(normals=prior), whole_views(cameras, parts, seen, size), estimates, 100)
    singles = []
    for camera, rays, estimate in zip(cameras, parts, estimates.split(1), strict=True):
        one = render_rays(run.radiance_field, rays, run.sampling, torch.zeros(3))
        views = whole_views([camera], [rays], one, size)
        singles.append(surface_terms(run, SurfaceModels(normals=prior), views, estimate, 100)["normal"])
    torch.testing.assert_close(both["normal"], torch.stack(singles).mean())
    assert both["normal"] > 0 and singles[0] != singles[1]
