"""Prior of a latent diffusion model such as Stable Diffusion or Toybox."""

# diffusers declares neither the attributes of `config` nor which output type an autoencoder returns.
# pyright: reportAttributeAccessIssue=false

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from .prior import DiffusionPrior


class LatentDiffusionPrior(DiffusionPrior):
    """Latent diffusion prior, where z is a latent of an autoencoder.

    Args:
        vae: Autoencoder of the model, or a distilled autoencoder with the same latents (`AutoencoderTiny`).
        unet, scheduler: diffusers components.
        image_size: Height and width of the images that the prior takes, in pixels. 0 selects the size that the model
            was trained on.

    Raises:
        ValueError: If the UNet takes more channels than the latents have, as an inpainting UNet does, or if the
            autoencoder and the UNet cannot downsample `image_size` evenly.
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
        """Return the height and width of the images that the prior takes, in pixels."""
        trained = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self._image_size or trained

    def encode(self, x: Tensor) -> Tensor:
        """Return z = E(x), the scaled posterior mean. Differentiable.

        Args:
            x: `(B, 3, H, W)` in [0, 1].

        Returns:
            `(B, C, h, w)` float32, or float64 if the autoencoder is in float64.
        """
        images = (2 * x - 1).to(self.vae.dtype)
        config = self.vae.config
        encoded = self.vae.encode(images)
        mean = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))  # half becomes float32; double stays
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return x_hat = D(z_hat): `(B, C, h, w)` -> `(B, 3, H, W)` float32, clipped to [0, 1]."""
        config = self.vae.config
        latents = (z / config.scaling_factor + (config.shift_factor or 0.0)).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)
