"""Baselines through the same loop: their gradients against the published ones, on real tiny components."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from hifa import HiFAPipeline
from hifa.cameras import Camera
from hifa.priors.distillation import Views, distillation_loss, distillation_target, residual_weight
from hifa.priors.pixel_diffusion import PixelDiffusionPrior

from .test_pipeline import TINY, generator


SIZE = 32  # pixels that the tiny priors see
FRONT = Camera(0, 15)


@pytest.fixture(scope="module", params=["tiny_prior", "tiny_v_prior"])
def pipe(request):
    return HiFAPipeline.from_pretrained(request.getfixturevalue(request.param))


def view() -> torch.Tensor:
    """A smooth random picture `(1, 3, H, W)`."""
    x = torch.rand(1, 3, 4, 4, generator=generator())
    return torch.nn.functional.interpolate(x, SIZE, mode="bilinear").requires_grad_()


def gradient(pipe, t: int, prior=None, **settings) -> torch.Tensor:
    """Of the loss in a view from the front, with the noise of seed 5."""
    run = pipe.start("a red ball", config=TINY, generator=generator(), **{"lambda_rgb": 0.0} | settings)
    run.generator.manual_seed(5)
    prior, x = prior or pipe.make_prior(), view()
    seen = Views(x, prior.encode(x), t, (FRONT,))
    distillation_loss(run.config, seen, distillation_target(run, prior, seen)).backward()
    return x.grad


def score_by_diffusers(pipe, t: int, scale: float):
    """The view, its latent, eps_hat, eps, alpha_t and sigma_t as diffusers' own parts have them."""
    x = view()
    z = pipe.vae.encode(2 * x - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    noise = torch.randn(z.shape, generator=generator(5))
    z_t = pipe.scheduler.add_noise(z.detach(), noise, torch.tensor([t]))
    embeds = pipe.encode_prompt("a red ball")[[0, 2]]
    with torch.no_grad():
        negative, positive = pipe.unet(torch.cat([z_t] * 2), t, encoder_hidden_states=embeds).sample.chunk(2)
    alpha, sigma = pipe.scheduler.alphas_cumprod[t] ** 0.5, (1 - pipe.scheduler.alphas_cumprod[t]) ** 0.5
    output = negative + scale * (positive - negative)
    epsilon = output if pipe.scheduler.config.prediction_type == "epsilon" else alpha * output + sigma * z_t
    return x, z, epsilon, noise, alpha, sigma


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
    """s (D(z + s n) - z) / s^2 uphill, with D the denoiser at s = sigma_t / alpha_t in the units of z."""
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


def test_vsd_without_a_variational_score_is_refused(pipe):
    """It would be SDS."""
    with pytest.raises(ValueError, match="distillation='vsd' needs a variational score. Pass VariationalScore"):
        gradient(pipe, 500, distillation="vsd")


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
    embeds = pipe.encode_prompt("a red ball")[[0, 2]]
    with torch.no_grad():
        negative, positive = unet(torch.cat([z_t] * 2), t, encoder_hidden_states=embeds).sample.chunk(2)
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
