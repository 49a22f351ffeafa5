"""The 2D prior of a latent diffusion model: what it would make of a rendered image (HiFA section 4.1, algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Guidance:
    """How the prior estimates z_hat.

    Args:
        scale: Classifier-free guidance s in eps_u + s (eps_c - eps_u); 1 and below skip the unconditional call.
        rescale: Share phi of the standard-deviation rescaling of Lin et al. 2023, "Common Diffusion Noise Schedules
            and Sample Steps Are Flawed", section 3.4; 0 is off.
        stride: r in (0, 1]: multi-step denoising jumps r x 1000 timesteps at a time. 1 is the single-step estimate.
        eta: Share of fresh noise in each jump, 0 (DDIM) to 1 (ancestral).
    """

    scale: float
    rescale: float
    stride: float
    eta: float


class LatentDiffusionPrior:
    """Encoder E, decoder D and denoiser eps of a latent diffusion model, frozen.

    Args:
        vae, unet, scheduler: diffusers components; epsilon, v and sample prediction are understood.
    """

    def __init__(self, vae: AutoencoderKL, unet: UNet2DConditionModel, scheduler: DDIMScheduler):
        self.vae, self.unet = vae, unet
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type
        # The level that denoising ends at: 1 or, with set_alpha_to_one=False, the first of the schedule.
        self.final_alpha_cumprod = float(scheduler.final_alpha_cumprod)

    def encode(self, x: Tensor) -> Tensor:
        """z = E(x), the posterior mean, scaled: `(B, 3, H, W)` in [0, 1] -> `(B, C, h, w)` float32, differentiable."""
        images = (2 * x - 1).to(self.vae.dtype)
        config = self.vae.config
        mean = self.vae.encode(images).latent_dist.mean.float()
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1]."""
        config = self.vae.config
        latents = (z / config.scaling_factor + (config.shift_factor or 0.0)).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def estimate(
        self, z: Tensor, t: int, prompt_embeds: Tensor, guidance: Guidance, generator: torch.Generator | None
    ) -> Tensor:
        """z_hat: noise z to timestep t, then denoise it (algorithm 1, steps 3 to 5).

        Args:
            z: `(1, C, h, w)`.
            t: Timestep.
            prompt_embeds: `(2, tokens, dim)`, negative and positive.
        """
        noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        z_t = add_noise(z.detach(), noise, float(self.alphas_cumprod[t]))

        def predict(latents: Tensor, timestep: int) -> Tensor:
            return self._predict_noise(latents, timestep, prompt_embeds, guidance)

        def draw_noise() -> Tensor:
            return randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)

        return denoise(
            z_t, t, predict, self.alphas_cumprod, self.final_alpha_cumprod, guidance.stride, guidance.eta, draw_noise
        )

    def _predict_noise(self, latents: Tensor, t: int, prompt_embeds: Tensor, guidance: Guidance) -> Tensor:
        guided = guidance.scale > 1
        context = (prompt_embeds if guided else prompt_embeds[1:]).to(self.unet.dtype)
        batch = latents.to(self.unet.dtype).expand(len(context), -1, -1, -1)
        output = self.unet(batch, t, encoder_hidden_states=context, return_dict=False)[0].float()
        if guided:
            negative, positive = output.chunk(2)
            output = rescale_guidance(negative + guidance.scale * (positive - negative), positive, guidance.rescale)
        return to_epsilon(output, latents, float(self.alphas_cumprod[t]), self.prediction_type)


def to_prior_size(colour: Tensor, size: int, image_size: int) -> Tensor:
    """Image x `(1, 3, image_size, image_size)` of the prior's size from rays' colours `(size * size, 3)`."""
    x = colour.view(1, size, size, 3).permute(0, 3, 1, 2)
    if size == image_size:
        return x
    antialias = size > image_size
    return F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=antialias)


def add_noise(z: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """z_t = alpha_t z + sigma_t eps (algorithm 1, step 3)."""
    return alpha_cumprod**0.5 * z + (1 - alpha_cumprod) ** 0.5 * noise


def to_epsilon(output: Tensor, z_t: Tensor, alpha_cumprod: float, prediction_type: str) -> Tensor:
    """Noise estimate from a model output (Salimans and Ho 2022, "Progressive Distillation", appendix D).

    Raises:
        ValueError: For a prediction type other than epsilon, v_prediction and sample.
    """
    alpha, sigma = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * z_t
    if prediction_type == "sample":
        return (z_t - alpha * output) / sigma
    raise ValueError(f"prediction_type {prediction_type!r} is not one of 'epsilon', 'v_prediction', 'sample'.")


def rescale_guidance(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """Mix the guided output with itself at the conditional one's standard deviation (Lin et al. 2023, eq. 15, 16)."""
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (rescale * factor + 1 - rescale)


def denoising_timesteps(t: int, stride: float, num_train_timesteps: int) -> list[int]:
    """Timesteps at which the denoiser is called from t on: t, t - r T, ... while positive; only t itself for r = 1."""
    return list(range(t, 0, -max(1, round(stride * num_train_timesteps)))) or [t]


def denoise(
    z_t: Tensor,
    t: int,
    predict: Callable[[Tensor, int], Tensor],
    alphas_cumprod: Tensor,
    final_alpha_cumprod: float,
    stride: float,
    eta: float,
    draw_noise: Callable[[], Tensor],
) -> Tensor:
    """Estimate z from z_t, in one step or several (HiFA algorithm 1, step 5).

    One step (stride 1): z_hat = (z_t - sigma_t eps_hat) / alpha_t. Several: DDIM (Song et al. 2021, equations 12 and
    16) from t in jumps of stride x T down to the end of the schedule. The last jump adds no noise, unlike the public
    code, whose estimate still carries it.

    Args:
        z_t: `(B, C, h, w)`.
        predict: Guided noise estimate at (latents, timestep).
        alphas_cumprod: `(T,)`.
        final_alpha_cumprod: Signal level at the end of denoising.
        draw_noise: A fresh standard normal sample of the shape of z_t; called for eta > 0 only.
    """
    timesteps = denoising_timesteps(t, stride, len(alphas_cumprod))
    jump = max(1, round(stride * len(alphas_cumprod)))
    for step in timesteps:
        now = float(alphas_cumprod[step])
        epsilon = predict(z_t, step)
        z_hat = (z_t - (1 - now) ** 0.5 * epsilon) / now**0.5
        if stride >= 1:
            return z_hat
        last = step - jump <= 0
        after = final_alpha_cumprod if last else float(alphas_cumprod[step - jump])
        sigma = 0.0 if last else eta * ((1 - after) / (1 - now) * (1 - now / after)) ** 0.5
        z_t = after**0.5 * z_hat + (1 - after - sigma**2) ** 0.5 * epsilon
        if sigma > 0:
            z_t = z_t + sigma * draw_noise()
    return z_t
