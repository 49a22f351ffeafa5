"""Baselines through the same loop: their gradients against the published ones, on real tiny components."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from hifa import HiFAPipeline
from hifa.cameras import Camera
from hifa.optimization.distillation import (
    HiFADistiller,
    ScoreDistiller,
    Views,
    VSDDistiller,
    distillation_loss,
    make_distiller,
    residual_weight,
)
from hifa.priors.pixel_diffusion import PixelDiffusionPrior
from tests.helpers.runs import TINY, generator
from tests.helpers.scores import SIZE, score_by_diffusers, view


FRONT = Camera(0, 15)


@pytest.fixture(scope="module", params=["tiny_prior", "tiny_v_prior"])
def pipe(request):
    return HiFAPipeline.from_pretrained(request.getfixturevalue(request.param))


def gradient(pipe, t: int, prior=None, **settings) -> torch.Tensor:
    """Return the gradient of the loss in a view from the front, with the noise of seed 5."""
    run = pipe.start("a red ball", config=TINY, generator=generator(), **{"lambda_rgb": 0.0} | settings)
    run.generator.manual_seed(5)
    prior, x = prior or pipe.make_prior(), view()
    seen = Views(x, prior.encode(x), t, (FRONT,))
    distillation_loss(run.config, seen, make_distiller(run, prior).target(seen)).backward()
    return x.grad


@pytest.mark.parametrize("t", [20, 500, 980])
@pytest.mark.parametrize("scale", [1.5, 100.0])
def test_sds_is_the_published_gradient(pipe, t, scale):
    """w(t) (eps_hat - eps) dz/dx (equation 2), with w(t) = sigma_t^2 up to the factor of the settings."""
    x, z, epsilon, noise, _, sigma = score_by_diffusers(pipe, t, scale)
    (expected,) = torch.autograd.grad(z, x, 0.3 * sigma**2 * (epsilon - noise))
    actual = gradient(pipe, t, distillation="sds", sds_weight=0.3, guidance_scale=scale, view_guidance=1.0)
    assert expected.abs().max() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("t", [20, 500, 980])
def test_sjc_is_the_perturbed_score_at_its_noise_level(pipe, t):
    """S (D(z + s n) - z) / s^2 uphill, with D the denoiser at s = sigma_t / alpha_t in the units of z."""
    x, z, epsilon, noise, alpha, sigma = score_by_diffusers(pipe, t, 10.0)
    level = sigma / alpha
    denoised = z.detach() + level * noise - level * epsilon
    (expected,) = torch.autograd.grad(z, x, -0.3 * (denoised - z.detach()) / level)
    actual = gradient(pipe, t, distillation="sjc", sds_weight=0.3, guidance_scale=10.0, view_guidance=1.0)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("alpha_cumprod", [0.004, 0.3, 0.999])
def test_weights_by_hand(alpha_cumprod):
    ratio = (alpha_cumprod / (1 - alpha_cumprod)) ** 0.5
    assert residual_weight("sds", alpha_cumprod) == pytest.approx((1 - alpha_cumprod) * ratio)
    assert residual_weight("sjc", alpha_cumprod) == pytest.approx(ratio)


@pytest.mark.parametrize(
    "method, kind", [("hifa", HiFADistiller), ("sds", ScoreDistiller), ("sjc", ScoreDistiller), ("vsd", VSDDistiller)]
)
def test_the_setting_selects_the_distiller(pipe, method, kind):
    run = pipe.start("a red ball", config=TINY, distillation=method)
    distiller = make_distiller(run, prior := pipe.make_prior())
    assert type(distiller) is kind and distiller.run is run and distiller.prior is prior


@pytest.mark.parametrize("lambda_rgb", [0.0, 0.1])
@pytest.mark.parametrize("method", ["hifa", "sds", "vsd"])
def test_an_estimate_for_the_normals_adds_no_loss_in_image_space(pipe, method, lambda_rgb):
    """With `lambda_rgb=0` the estimates are decoded only if requested, and never become a target."""
    run, prior = pipe.start("a red ball", config=TINY, distillation=method, lambda_rgb=lambda_rgb), pipe.make_prior()
    distiller, x = make_distiller(run, prior), view().detach()
    seen = Views(x, prior.encode(x), 500, (FRONT,))
    targets = [distiller.target(seen, estimate) for estimate in (False, True)]
    assert all((target.x is None) == (lambda_rgb == 0) for target in targets)
    assert targets[0].estimate is None and targets[1].estimate.shape == x.shape
    assert 0 <= targets[1].estimate.min() and targets[1].estimate.max() <= 1


def test_multi_step_settings_are_hifas_alone(pipe):
    changes = [{"denoising_stride": 1.0, "eta": 0.0}, {"denoising_stride": 0.2, "eta": 1.0}]
    for method, same in (("sds", True), ("sjc", True), ("hifa", False)):
        first, second = (gradient(pipe, 700, distillation=method, **change) for change in changes)
        assert torch.equal(first, second) == same


def test_image_space_term_of_a_baseline_has_its_weight(pipe):
    """The gradient of a term in image space alone is w alpha / sigma lambda (x - D(z_hat))."""
    t = 400
    settings = dict(distillation="sds", sds_weight=0.3, guidance_scale=2.0, view_guidance=1.0)
    actual = gradient(pipe, t, lambda_latent=0.0, lambda_rgb=0.2, **settings)
    x, z, epsilon, noise, alpha, sigma = score_by_diffusers(pipe, t, 2.0)
    with torch.no_grad():
        z_hat = (alpha * z + sigma * (noise - epsilon)) / alpha
        x_hat = (pipe.vae.decode(z_hat / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    expected = 0.3 * alpha * sigma * 0.2 * (x.detach() - x_hat)
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3 * expected.abs().max())


def test_estimates_of_a_pixel_model_are_not_limited(pipe, tiny_prior):
    """Thresholding, which belongs to sampling, would break the identity."""
    config = UNet2DConditionModel.load_config(tiny_prior, subfolder="unet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config, in_channels=3, out_channels=3, sample_size=SIZE)
    scheduler = DDIMScheduler(thresholding=True, sample_max_value=1.5)
    prior, t = PixelDiffusionPrior(unet.requires_grad_(False), scheduler), 800
    settings = dict(sds_weight=1.0, guidance_scale=30.0, view_guidance=1.0, denoising_stride=1.0)
    actual = gradient(pipe, t, prior, distillation="sds", **settings)
    noise, z = torch.randn(1, 3, SIZE, SIZE, generator=generator(5)), 2 * view().detach() - 1
    z_t = scheduler.add_noise(z, noise, torch.tensor([t]))
    tokens = pipe.encode_prompt("a red ball")[[0, 2]].tokens
    with torch.no_grad():
        negative, positive = unet(torch.cat([z_t] * 2), t, encoder_hidden_states=tokens).sample.chunk(2)
    expected = 2 * (1 - scheduler.alphas_cumprod[t]) * (negative + 30 * (positive - negative) - noise)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("method", ["sds", "sjc"])
def test_a_baseline_runs_is_repeatable_and_differs(pipe, method):
    def losses(distillation):
        settings = dict(distillation=distillation, annealing="random", t_min=0.02)
        run = pipe.start("a red ball", config=TINY, generator=generator(), **settings)
        return [step.losses for step in pipe.advance(run)]

    first = losses(method)
    assert first == losses(method) and first[0]["sds"] != losses("hifa")[0]["sds"]
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in first)
