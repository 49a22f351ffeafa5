"""The prior's estimate against diffusers' own scheduler, closed forms, and real tiny components."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional as F

from hifa.losses import sds_plus_loss
from hifa.priors.denoising import add_noise, denoise, denoising_timesteps, to_epsilon
from hifa.priors.latent_diffusion import LatentDiffusionPrior
from hifa.priors.prompt_embeddings import PromptEmbeddings
from hifa.priors.prompt_guidance import classifier_free, guided_output, rescale_guidance


SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
SHAPE = (1, 4, 8, 8)


def randn(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler_of(**changes) -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE | {"set_alpha_to_one": False} | changes)


def denoiser(z: torch.Tensor, t: int) -> torch.Tensor:
    """Any smooth function of latents and timestep will do to compare samplers."""
    return 0.9 * z + 0.2 * torch.cos(3 * z + t / 100)


def run(scheduler, z_t, t, predict, stride, eta=0.0, draw=torch.empty):
    return denoise(z_t, t, predict, scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), stride, eta, draw)


def no_noise():
    raise AssertionError("no noise may be drawn")


@pytest.mark.parametrize(
    "t, stride, expected",
    [
        (973, 0.25, [973, 723, 473, 223]),
        (499, 0.25, [499, 249]),
        (500, 0.25, [500, 250]),  # the last jump lands on 0
        (980, 0.3, [980, 680, 380, 80]),
        (20, 0.25, [20]),
        (973, 1.0, [973]),
        (0, 0.25, [0]),
        (0, 1.0, [0]),
        (3, 0.001, [3, 2, 1]),
    ],
)
def test_timesteps_by_hand(t, stride, expected):
    assert denoising_timesteps(t, stride, 1000) == expected


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("steps", [2, 4, 5, 10])
def test_denoise_is_ddim_at_equal_strides(set_alpha_to_one, steps):
    scheduler = scheduler_of(set_alpha_to_one=set_alpha_to_one)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    expected = z_t = randn(0)
    for t in timesteps:
        expected = scheduler.step(denoiser(expected, t), t, expected, eta=0.0).prev_sample
    calls = []

    def predict(z, t):
        calls.append(t)
        return denoiser(z, t)

    actual = run(scheduler, z_t, timesteps[0], predict, 1 / steps, draw=no_noise)
    assert calls == timesteps
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_denoise_is_ddim_with_fresh_noise():
    # Ending at alpha = 1 the last jump of DDIM has no noise in any case, so all of it can be compared.
    scheduler = scheduler_of(set_alpha_to_one=True)
    scheduler.set_timesteps(4)
    timesteps = scheduler.timesteps.tolist()
    noises = [randn(10 + i) for i in range(4)]
    expected = z_t = randn(0)
    for t, noise in zip(timesteps, noises, strict=True):
        output = denoiser(expected, t)
        expected = scheduler.step(output, t, expected, eta=0.7, variance_noise=noise).prev_sample
    drawn = iter(noises)
    actual = run(scheduler, z_t, timesteps[0], denoiser, 0.25, 0.7, lambda: next(drawn))
    assert len(list(drawn)) == 1, "three jumps with noise, the last one without"
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [973, 500, 20, 0])
def test_single_step_closed_form(t):
    scheduler = scheduler_of()
    alpha = float(scheduler.alphas_cumprod[t])
    z_t, epsilon = randn(0), randn(1)
    estimate = run(scheduler, z_t, t, lambda z, step: epsilon, 1.0, draw=no_noise)
    torch.testing.assert_close(estimate, (z_t - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5)


@pytest.mark.parametrize("stride", [1.0, 0.5, 0.25, 0.1])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("t", [973, 500, 123])
def test_a_denoiser_that_knows_the_answer_finds_it(stride, eta, t):
    """Whatever the jumps and the fresh noise, the estimate is the truth when every prediction points at it."""
    scheduler = scheduler_of(set_alpha_to_one=True)
    truth, generator = randn(0), torch.Generator().manual_seed(1)

    def predict(z, step):
        alpha = float(scheduler.alphas_cumprod[step])
        return (z - alpha**0.5 * truth) / (1 - alpha) ** 0.5

    z_t = add_noise(truth, randn(2), float(scheduler.alphas_cumprod[t]))
    estimate = run(scheduler, z_t, t, predict, stride, eta, lambda: torch.randn(SHAPE, generator=generator))
    torch.testing.assert_close(estimate, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("t", [0, 1, 499, 999])
def test_add_noise_is_that_of_diffusers(t):
    scheduler = scheduler_of()
    expected = scheduler.add_noise(randn(0), randn(1), torch.tensor([t]))
    torch.testing.assert_close(add_noise(randn(0), randn(1), float(scheduler.alphas_cumprod[t])), expected)


@pytest.mark.parametrize("t", [20, 499, 980])
def test_every_prediction_type_gives_back_the_noise(t):
    scheduler = scheduler_of()
    z, noise, alpha = randn(0), randn(1), float(scheduler.alphas_cumprod[t])
    z_t = scheduler.add_noise(z, noise, torch.tensor([t]))
    outputs = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(z, noise, torch.tensor([t])),
        "sample": z,
    }
    for name, output in outputs.items():
        torch.testing.assert_close(to_epsilon(output, z_t, alpha, name), noise, rtol=1e-3, atol=1e-4)


def test_unknown_prediction_type_is_refused_by_name():
    with pytest.raises(ValueError, match="'flow'.*'epsilon', 'v_prediction', 'sample'"):
        to_epsilon(randn(0), randn(1), 0.5, "flow")


def test_rescaling_by_hand():
    # Twice the output has twice its standard deviation: the factor is 1/2, mixed with 1 by the share.
    positive = randn(0)
    guided = 2 * positive
    assert torch.equal(rescale_guidance(guided, positive, 0.0), guided)
    torch.testing.assert_close(rescale_guidance(guided, positive, 1.0), positive)
    torch.testing.assert_close(rescale_guidance(guided, positive, 0.5), 0.75 * guided)


def test_rescaling_treats_each_sample_alone():
    positive = randn(0, (2, 4, 8, 8))
    guided = positive * torch.tensor([2.0, 8.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(rescale_guidance(guided, positive, 1.0), positive)


# Real components, tiny and random: what a Stable Diffusion folder holds.


@pytest.fixture(scope="module", params=["tiny_prior", "tiny_v_prior"])
def parts(request):
    folder = request.getfixturevalue(request.param)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.prediction_type == {"tiny_prior": "epsilon", "tiny_v_prior": "v_prediction"}[request.param]
    return vae, unet, scheduler


@pytest.fixture(scope="module")
def prior(parts):
    for model in parts[:2]:
        model.requires_grad_(False)
    return LatentDiffusionPrior(*parts)


EMBEDDINGS = PromptEmbeddings(randn(7, (3, 24, 16)))


def test_encode_is_the_scaled_mean_and_has_a_gradient(parts, prior):
    vae = parts[0]
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(x)
    expected = vae.encode(2 * x - 1).latent_dist.mode() * vae.config.scaling_factor
    assert z.shape == (1, 4, 8, 8)
    torch.testing.assert_close(z, expected)
    z.sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None for p in vae.parameters())


def test_decode_is_an_image_and_has_none(parts, prior):
    vae, z = parts[0], randn(0).requires_grad_()
    x = prior.decode(z)
    expected = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(x, expected)
    assert x.shape == (1, 3, 32, 32) and not x.requires_grad


@pytest.mark.parametrize("scale, rescale", [(1.0, 0.0), (7.5, 0.0), (7.5, 0.7)])
def test_estimate_is_the_sampler_of_diffusers(parts, prior, scale, rescale):
    """Against a plain classifier-free guided DDIM loop with the scheduler's own update, which knows epsilon and v."""
    _, unet, scheduler = parts
    scheduler.set_timesteps(4)
    timesteps = scheduler.timesteps.tolist()
    z, t = randn(0), timesteps[0]
    with torch.no_grad():
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
        expected = scheduler.add_noise(z, noise, torch.tensor([t]))
        for step in timesteps:
            negative, positive = unet(
                torch.cat([expected] * 2), step, encoder_hidden_states=EMBEDDINGS.tokens[[0, 2]]
            ).sample.chunk(2)
            output = negative + scale * (positive - negative)
            if rescale:
                output = output * (rescale * positive.std() / output.std() + 1 - rescale)
            expected = scheduler.step(output, step, expected, eta=0.0).prev_sample
    generator = torch.Generator().manual_seed(5)
    actual = prior.estimate(z, t, classifier_free(EMBEDDINGS, 0, scale, 1.0, rescale), 0.25, 0.0, generator)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_single_step_estimate_is_the_schedulers_prediction(parts, prior):
    _, unet, scheduler = parts
    scheduler.set_timesteps(1000)
    z, t = randn(0), 600
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    z_t = scheduler.add_noise(z, noise, torch.tensor([t]))
    with torch.no_grad():
        output = unet(z_t, t, encoder_hidden_states=EMBEDDINGS.tokens[2:]).sample
    expected = scheduler.step(output, t, z_t).pred_original_sample
    generator = torch.Generator().manual_seed(5)
    actual = prior.estimate(z, t, classifier_free(EMBEDDINGS, 0, 1.0, 1.0, 0.0), 1.0, 0.0, generator)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_estimate_is_a_function_of_its_generator(prior):
    guidance, before = classifier_free(EMBEDDINGS, 0, 5.0, 2.0, 0.5), torch.get_rng_state()
    first, again, other = (
        prior.estimate(randn(0), 900, guidance, 0.3, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_estimate_carries_no_graph(prior):
    z = randn(0).requires_grad_()
    estimate = prior.estimate(z, 500, classifier_free(EMBEDDINGS, 0, 5.0, 1.0, 0.0), 1.0, 0.0, torch.Generator())
    assert not estimate.requires_grad


def test_view_guidance_by_hand(prior, parts):
    """One step at t = 700 with s = 5 and k = 3: three calls of the UNet, combined outside of the code under test."""
    _, unet, scheduler = parts
    z, t = randn(0), 700
    z_t = scheduler.add_noise(z, torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)), torch.tensor([t]))
    with torch.no_grad():
        negative, plain, view = (unet(z_t, t, encoder_hidden_states=EMBEDDINGS.tokens[[i]]).sample for i in range(3))
    expected = scheduler.step(negative + 5 * (plain - negative) + 15 * (view - plain), t, z_t).pred_original_sample
    generator = torch.Generator().manual_seed(5)
    actual = prior.estimate(z, t, classifier_free(EMBEDDINGS, 0, 5.0, 3.0, 0.0), 1.0, 0.0, generator)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_guided_output_is_ordinary_guidance_for_k_1_and_continuous_there():
    negative, plain, view = (randn(seed) for seed in range(3))
    ordinary = guided_output(negative, plain, view, 7.5, 1.0)
    torch.testing.assert_close(ordinary, negative + 7.5 * (view - negative))
    torch.testing.assert_close(guided_output(negative, plain, view, 7.5, 1.0 + 1e-6), ordinary, rtol=1e-4, atol=1e-4)
    # A picture that the words of the view do not change gives them nothing to pull at.
    torch.testing.assert_close(
        guided_output(negative, plain, plain, 7.5, 9.0), negative + 7.5 * (plain - negative), rtol=1e-5, atol=1e-5
    )


def test_both_prompts_matter_with_guidance_and_one_without(prior):
    def estimate(embeddings, scale):
        guidance = classifier_free(embeddings, 0, scale, 1.0, 0.0)
        return prior.estimate(randn(0), 700, guidance, 1.0, 0.0, torch.Generator().manual_seed(0))

    other = PromptEmbeddings(torch.stack([randn(8, (24, 16)), *EMBEDDINGS.tokens[1:]]))  # another negative prompt
    assert not torch.equal(estimate(EMBEDDINGS, 5.0), estimate(other, 5.0))
    assert torch.equal(estimate(EMBEDDINGS, 1.0), estimate(other, 1.0))


def test_the_folder_is_an_ordinary_stable_diffusion(tiny_prior):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_prior)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        "a red ball, front view", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    assert images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("lambdas", [(1.0, 0.0), (0.0, 0.1), (1.0, 0.1)])
def test_gradient_of_sds_plus_through_the_encoder(parts, lambdas):
    """Equation 4 against a difference quotient along a random direction, in float64: the latent term, that in image
    space, and both.
    """
    vae, unet, scheduler = parts
    prior = LatentDiffusionPrior(copy.deepcopy(vae).double(), unet, scheduler)
    x = F.interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 32, mode="bilinear").double()
    direction, z_hat, x_hat = randn(3, x.shape).double(), randn(4).double(), prior.decode(randn(4).double())

    def loss(x: torch.Tensor) -> torch.Tensor:
        weights = dict(weight=0.3, lambda_latent=lambdas[0], lambda_rgb=lambdas[1])
        return sds_plus_loss(prior.encode(x), z_hat, x, x_hat, **weights)

    (grad,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
    step = 1e-6
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert grad.dtype == slope.dtype == torch.float64
    assert (grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)
