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
        image_size: Pixels per side of what it is shown; 0 for those that it was trained on.

    Raises:
        ValueError: If the UNet takes more than the latents, as one for inpainting does, or the size does not fit.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        image_size: int = 0,
    ):
        super().__init__(unet, scheduler, channels=vae.config.latent_channels)
        self.vae, self._image_size = vae, image_size
        halvings = len(vae.config.block_out_channels) - 1 + len(unet.config.block_out_channels) - 1
        if image_size % 2**halvings:
            raise ValueError(f"prior_size must be a multiple of {2**halvings} for this prior, got {image_size}.")

    @property
    def image_size(self) -> int:
        trained = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self._image_size or trained

    def encode(self, x: Tensor) -> Tensor:
        """z = E(x), the posterior mean, scaled: `(B, 3, H, W)` in [0, 1] -> `(B, C, h, w)` float32, differentiable; of
        a double autoencoder float64."""
        images = (2 * x - 1).to(self.vae.dtype)
        config = self.vae.config
        encoded = self.vae.encode(images)
        mean = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))  # of half precision; double stays
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1]."""
        config = self.vae.config
        latents = (z / config.scaling_factor + (config.shift_factor or 0.0)).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
