"""Agreement with numbers computed by the public HiFA code (see tests/golden/README.md)."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional as F

from hifa.losses import monotonicity_loss, sds_plus_loss, z_variance_loss
from hifa.priors.denoising import add_noise, denoise
from hifa.priors.prompt_guidance import perp_neg_weights
from hifa.rendering.sampling import importance_samples
from hifa.rendering.volume import depth_moments
from hifa.schedule import annealed_timestep
from tests.helpers.paths import GOLDEN_FOLDER


GOLDEN = np.load(GOLDEN_FOLDER / "hifa_reference.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[name]))


@pytest.mark.parametrize("kernel, name", [((1, 1, 1), "ks_boxcar_samples"), ((1,), "ks_naive_samples")])
def test_importance_sampling(kernel, name):
    samples = importance_samples(golden("ks_bins"), golden("ks_weights"), 16, kernel)
    torch.testing.assert_close(samples, golden(name), rtol=0, atol=1e-4)


def test_z_variance():
    z, weights = golden("zvar_z"), golden("zvar_weights")
    depth, variance = depth_moments(weights, z)
    torch.testing.assert_close(depth, golden("zvar_depth"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, golden("zvar_per_ray"), rtol=1e-5, atol=1e-6)
    opacity = weights.sum(-1)
    assert torch.equal(opacity > 0.5, golden("zvar_mask"))
    loss = z_variance_loss(variance, opacity)
    torch.testing.assert_close(loss, golden("zvar_mean_over_rays"), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss * len(z), golden("zvar_sum"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("t_min", [300, 20])
def test_square_root_annealing(t_min):
    timesteps = [annealed_timestep(int(i), 10_000, 980, t_min) for i in GOLDEN["anneal_iter"]]
    assert timesteps == GOLDEN[f"anneal_sqrt_980_{t_min}"].tolist()


SDS_CASES = {
    "single_t973": (973, 1.0, 1, 0.1),
    "single_t499": (499, 1.0, 1, 0.1),
    "ddim4_t973": (973, 0.25, 1, 0.1),
    "ddim4_t499": (499, 0.25, 1, 0.1),
    "latent_only_t499": (499, 1.0, 1, 0.0),
    "image_only_t499": (499, 1.0, 0, 0.1),
}


@pytest.mark.parametrize("case", SDS_CASES)
def test_sds_plus(case):
    """Loss, gradient with respect to the image and denoiser calls, with the linear stand-ins of the reference."""
    t, stride, lambda_latent, lambda_rgb = SDS_CASES[case]
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False,
    )  # fmt: skip
    calls = []
    scale = float(GOLDEN["sds_guidance_scale"])
    negative, positive = float(GOLDEN["sds_embed_uncond"]), float(GOLDEN["sds_embed_text"])

    def predict(z, timestep):
        calls.append(timestep)
        unconditional, conditional = 0.9 * z + negative * torch.cos(z), 0.9 * z + positive * torch.cos(z)
        return unconditional + scale * (conditional - unconditional)

    x = golden("sds_x").requires_grad_()
    z = 0.18215 * F.conv2d(2 * x - 1, golden("sds_vae_encoder_weight"), stride=8)
    with torch.no_grad():
        z_t = add_noise(z, golden("sds_noise"), float(scheduler.alphas_cumprod[t]))
        z_hat = denoise(
            z_t, t, predict, scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), stride, 0.0, torch.empty
        )
        decoded = F.conv_transpose2d(z_hat / 0.18215, golden("sds_vae_decoder_weight"), stride=8)
        x_hat = (decoded / 2 + 0.5).clamp(0, 1)
    loss = sds_plus_loss(z, z_hat, x, x_hat, weight=0.05, lambda_latent=lambda_latent, lambda_rgb=lambda_rgb)
    loss.backward()
    assert calls == GOLDEN[f"sds_{case}_calls"].tolist()
    assert loss.item() == pytest.approx(float(GOLDEN[f"sds_{case}_loss"]), rel=1e-5)
    torch.testing.assert_close(x.grad, golden(f"sds_{case}_grad"), rtol=1e-5, atol=1e-5 * x.grad.abs().max().item())


def test_monotonicity():
    torch.testing.assert_close(monotonicity_loss(golden("mono_pdf")), golden("mono_loss"), rtol=1e-5, atol=0)


def test_perp_neg_weights():
    """The weight of the mixed prompt is always 1."""
    ours = [(1.0, *perp_neg_weights(float(azimuth))) for azimuth in GOLDEN["perpneg_azimuth"]]
    torch.testing.assert_close(torch.tensor(ours), golden("perpneg_weights").float(), rtol=1e-5, atol=1e-7)
