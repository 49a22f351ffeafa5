"""The prior of a latent diffusion model such as Stable Diffusion or Toybox."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .prior import DiffusionPrior


class LatentDiffusionPrior(DiffusionPrior):
    """z is a latent of an autoencoder.

    Args:
        vae: The model's own, or a distilled one of the same latents (`AutoencoderTiny`).
        unet, scheduler: diffusers components.

    Raises:
        ValueError: If the UNet takes more than the latents, as one for inpainting does.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, unet: UNet2DConditionModel, scheduler: DDIMScheduler):
        super().__init__(unet, scheduler, channels=vae.config.latent_channels)
        self.vae = vae

    @property
    def image_size(self) -> int:
        """Pixels per side that the prior was trained on."""
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, x: Tensor) -> Tensor:
        """z = E(x), the posterior mean, scaled: `(B, 3, H, W)` in [0, 1] -> `(B, C, h, w)` float32, differentiable."""
        images = (2 * x - 1).to(self.vae.dtype)
        config = self.vae.config
        encoded = self.vae.encode(images)
        mean = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean
        return (mean.float() - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1]."""
        config = self.vae.config
        latents = (z / config.scaling_factor + (config.shift_factor or 0.0)).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
